() => {
  // gradio reports a slider when the pointer lets it go, but not when a key does.
  const let_go = (input) => input.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  document.addEventListener("keyup", (event) => {
    if (!event.target.closest("#share")) return;
    if (event.target.type === "range" && event.key !== "Tab") let_go(event.target);
    if (event.target.type === "number" && event.key === "Enter") event.target.blur();
  });
}
