"""The demo's page. Nothing in it comes from anywhere but this server (see also ``server``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import gradio as gr
from jinja2 import Environment, StrictUndefined

from ..environment import device_name
from ..errors import SlimdiffError
from ..memory import OUT_OF_MEMORY
from ..pictures import data_url, pixelated, to_image
from .studio import Drawing, Studio

__all__ = ["asset", "build", "cards", "explain", "theme"]

_LARGEST = 1024
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "pictures", "concurrency_limit": 1}
_QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_FONTS = ("Noto Sans", "DejaVu Sans", "sans-serif")
_MONO = ("DejaVu Sans Mono", "monospace")


def build(
    studio: Studio,
    names: tuple[str, str],
    *,
    no_slider: str = "",
    examples: Sequence[str] = (),
    seed: int = 0,
) -> gr.Blocks:
    """The page for ``studio``. ``names``: what the user called the two models.

    ``no_slider`` says why there is no slider, where there is none.
    """
    with gr.Blocks(title="slimdiff demo", analytics_enabled=False) as page:
        gr.HTML(_rendered("head.html", studio=studio, names=names, place=_place(studio)))
        with gr.Row(equal_height=True, elem_id="asking"):
            label = "Class, by number or name" if studio.takes_classes else "Prompt"
            prompt = gr.Textbox(label=label, lines=1, scale=6, autofocus=True, elem_id="prompt")
            number = gr.Number(seed, label="Seed", precision=0, scale=1, elem_id="seed")
            button = gr.Button("Draw", variant="primary", scale=1, elem_id="draw")
        if examples:
            gr.Examples([[text] for text in examples], prompt, cache_examples=False, label="Try")
        given: list[Any] = [prompt, number]
        if studio.slider is None:
            gr.HTML(_rendered("missing.html", reason=no_slider), elem_id="missing")
        else:
            given.append(_slider(studio))
        shown = gr.HTML(cards(studio, None, ()), elem_id="shown")

        def show(*asked: Any) -> Iterator[str]:
            yield from _progress(studio, *asked)

        options: dict[str, Any] = {"fn": show, "inputs": given, "outputs": shown}
        options |= _ONE_AT_A_TIME | _QUIETLY
        gr.on([button.click, prompt.submit, number.submit], trigger_mode="once", **options)
        if studio.slider is not None:
            given[-1].release(trigger_mode="always_last", **options)
    return page


def cards(
    studio: Studio,
    share: float | None,
    drawn: Sequence[Drawing],
    *,
    busy: bool = False,
    trouble: str = "",
) -> str:
    """HTML of the pictures that are ``drawn`` and of the room for others; ``busy`` with one."""
    pictures = [to_image(drawing.picture) for drawing in drawn]
    return _rendered(
        "cards.html",
        titles=studio.titles(share),
        room=studio.slider is not None,
        drawn=drawn,
        urls=[data_url(picture, _LARGEST) for picture in pictures],
        pixels=bool(pictures) and pixelated(pictures[0]),
        busy=busy,
        trouble=trouble,
    )


def explain(error: Exception) -> str:
    """What went wrong, in words for the page. What nobody foresaw goes to the terminal too."""
    if isinstance(error, SlimdiffError):
        return str(error)
    reason = "".join(str(error).strip().splitlines()[:1])
    if isinstance(error, OUT_OF_MEMORY):
        return (
            f"Out of memory ({reason}). Pipelines that the slider made were given up; try again, "
            "or start the demo with a smaller --width and --height."
        )
    logging.getLogger(__name__).error("The demo could not draw", exc_info=error)
    return f"Unexpected {type(error).__name__}: {reason}. The terminal shows where."


def theme() -> gr.themes.Base:
    """The colours of the report, in fonts of the reader's own machine."""
    made = gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=_FONTS, font_mono=_MONO, radius_size="lg"
    )
    return made.set(
        body_background_fill="#faf9f6",
        body_background_fill_dark="#131417",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b1d21",
        input_background_fill_dark="#24272c",
        border_color_primary_dark="#2c2f35",
        block_border_color_dark="#2c2f35",
        slider_color="#0b6e63",
        slider_color_dark="#56c4b2",
        block_info_text_color="#6a675e",
        block_info_text_color_dark="#9d9b93",
        button_primary_background_fill="#0b6e63",
        button_primary_background_fill_hover="#095a51",
        button_primary_background_fill_dark="#0b6e63",
        button_primary_text_color="#ffffff",
    )


def _slider(studio: Studio) -> gr.Slider:
    assert studio.slider is not None
    return gr.Slider(
        studio.slider.least,
        1.0,
        studio.slider.start,
        step=studio.slider.step,
        label="Share of the slimmable pool that stays",
        info="Move it: another plan from the same statistics, cut and drawn as a third picture.",
        elem_id="share",
    )


def _progress(
    studio: Studio, prompt: str, seed: float | None, share: float | None = None
) -> Iterator[str]:
    """The pictures as they come; what goes wrong is told beside those that are there."""
    drawn: list[Drawing] = []
    try:
        if not studio.knows(prompt, seed):
            yield cards(studio, share, drawn, busy=True)
        for drawing in studio.drawings(prompt, seed, share):
            drawn.append(drawing)
            yield cards(studio, share, drawn, busy=True)
        yield cards(studio, share, drawn)
    except Exception as error:
        yield cards(studio, share, drawn, trouble=explain(error))


def _place(studio: Studio) -> str:
    return f"{studio.sampling.steps} steps, {device_name(studio.device)}"


def _rendered(name: str, **values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    return environment.from_string(asset(name)).render(**values)


def asset(name: str) -> str:
    """A file that the page is made of."""
    return (files(__package__ or "") / name).read_text(encoding="utf-8")
