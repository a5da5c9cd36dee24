"use strict";
(() => {
  const gallery = document.querySelector(".gallery");
  if (!gallery) return;
  const press = (group, chosen) =>
    group.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));

  const modes = [...document.querySelectorAll("[data-mode]")].filter((e) => e.tagName === "BUTTON");
  modes.forEach((button) =>
    button.addEventListener("click", () => {
      press(modes, button);
      gallery.dataset.mode = button.dataset.mode;
      document.querySelectorAll("[data-hint]").forEach((hint) => {
        hint.hidden = hint.dataset.hint !== button.dataset.mode;
      });
    }));

  const orders = [...document.querySelectorAll("[data-order]")];
  orders.forEach((button) =>
    button.addEventListener("click", () => {
      press(orders, button);
      const key = button.dataset.order;
      [...gallery.children]
        .sort((a, b) => Number(a.dataset[key]) - Number(b.dataset[key]))
        .forEach((figure) => gallery.append(figure));
    }));

  gallery.querySelectorAll(".frame").forEach((frame) => {
    const range = frame.querySelector("input");
    const show = (share) => frame.style.setProperty("--at", `${share}%`);
    range.addEventListener("input", () => show(range.value));
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      const share = (100 * (event.clientX - box.left)) / box.width;
      range.value = share;
      show(Math.min(100, Math.max(0, share)));
    });
  });
})();
