"""Makes src/slimdiff/assets/prompts.txt, the prompt pool for real text-to-image models.

Whole prompts of the banks are taken as they are, scenes plainly, as a photograph or as a picture
in some medium, in turn. Each is taken once, so that the last tenth, which is held out, tells
nothing of the rest. The order is that of a hash: any prefix is a fair sample of all kinds.

    python benchmarks/prompts/make_pool.py [--check]
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

BANKS = Path(__file__).parent / "banks"
POOL = Path(__file__).parents[2] / "src/slimdiff/assets/prompts.txt"
LONGEST = 300

WHOLE = ("abstract", "captions", "counting", "formats", "long", "short", "text")

PHOTO = (
    "a photo of {}",
    "photograph of {}, sharp focus",
    "{}, 35mm film photograph",
    "{}, highly detailed photo",
    "{}, shot on medium format film, muted colors",
)
CANDID = (
    *PHOTO,
    "{}, candid photograph, shallow depth of field",
    "{}, documentary photography",
    "{}, photojournalism, high contrast",
    "cinematic still of {}",
    "{}, editorial photograph, slight film grain",
)
WIDE = (
    *PHOTO,
    "{}, wide-angle photograph",
    "{}, travel photography, vivid colors",
    "cinematic shot of {}",
    "{}, 4k, ultra detailed",
    "{}, panoramic photo",
)
WILD = (
    *PHOTO,
    "wildlife photograph of {}",
    "{}, telephoto lens, blurred background",
    "{}, nature magazine cover photo",
)
TABLE = (
    *PHOTO,
    "food photography of {}",
    "overhead photo of {}",
    "{}, cookbook photograph, shallow depth of field",
)
ROOM = (
    *PHOTO,
    "{}, interior design photography",
    "{}, architecture magazine photo",
    "{}, wide-angle interior shot",
)
GOODS = (
    *PHOTO,
    "product photography of {}",
    "{}, catalog photograph",
    "{}, advertising shot, clean composition",
    "{}, centered, minimalist product photo",
)
CLOSE = (
    "{}, shallow depth of field",
    "{}, fine detail, muted colors",
    "{}, quiet still life photograph",
    "{}, high resolution, crisp texture",
)
FILM = (
    "cinematic still of {}",
    "film still showing {}, period costume drama",
    "{}, historical reenactment photograph",
    "{}, museum diorama",
)
RENDER = (
    "{}, highly detailed 3d render",
    "cinematic still of {}",
    "{}, concept art, volumetric light",
    "{}, matte painting, epic scale",
    "{}, photorealistic",
)

PAINTED = (
    "an oil painting of {}",
    "{}, loose watercolor and ink",
    "{}, gouache illustration",
    "a pencil sketch of {}",
    "{}, impressionist painting",
    "a linocut of {}",
    "{}, flat vector illustration",
    "{}, children's book illustration",
    "a charcoal drawing of {}",
    "{}, anime style",
    "pixel art of {}",
    "{}, digital painting, dramatic lighting",
    "a woodblock print of {}",
    "{}, low-poly 3d render",
    "{}, paper-cut collage",
    "a pastel drawing of {}",
    "{}, risograph print in two colors",
    "a stained glass window showing {}",
    "{}, minimalist line art",
    "an embroidery of {}",
    "{}, oil on canvas with thick visible brushwork",
    "a mosaic of {}",
    "{}, isometric illustration",
    "comic book panel showing {}",
    "{}, pop art in bright flat colors",
    "a fresco of {}",
    "{}, cubist painting",
    "{}, claymation scene",
    "an ink wash painting of {}",
    "{}, pointillist painting",
    "{}, surrealist painting",
    "a chalk drawing of {}",
    "{}, felt and wool diorama",
    "a mural of {}",
    "{}, expressionist painting",
    "an art deco poster of {}",
    "{}, colored pencil on toned paper",
    "a watercolor of {}, soft edges",
)
STUDIES = (
    "{}, pencil study",
    "{}, watercolor study on rough paper",
    "{}, hyperrealist oil painting",
    "{}, etching with fine hatching",
    "{}, soft pastel",
)

SCENES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "animals": (WILD, PAINTED),
    "details": (CLOSE, STUDIES),
    "fantasy": (RENDER, PAINTED),
    "food": (TABLE, PAINTED),
    "history": (FILM, PAINTED),
    "interiors": (ROOM, PAINTED),
    "people": (CANDID, PAINTED),
    "places": (WIDE, PAINTED),
    "products": (GOODS, PAINTED),
    "vehicles": (WIDE, PAINTED),
}


def pool() -> list[str]:
    """The prompts, in order."""
    found = [line for name in WHOLE for line in _bank(name)]
    for name, (photo, painted) in SCENES.items():
        found += _framed(_shuffled(_bank(name)), photo, painted)
    found = _shuffled(found)
    _check(found)
    return found


def _framed(scenes: list[str], photo: tuple[str, ...], painted: tuple[str, ...]) -> Iterator[str]:
    """Each scene in turn as it is, as a photograph, in a medium."""
    photos, paintings = cycle(_shuffled(photo)), cycle(_shuffled(painted))
    for i, scene in enumerate(scenes):
        kind = i % 3
        if kind == 0:
            yield _sentence(scene) if i % 2 else scene
        else:
            yield next(photos if kind == 1 else paintings).format(scene)


def _sentence(scene: str) -> str:
    return f"{scene[0].upper()}{scene[1:]}."


def _bank(name: str) -> list[str]:
    lines = (BANKS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _shuffled(texts: list[str] | tuple[str, ...]) -> list[str]:
    """In the order of a hash: the same on every machine, whatever order they were written in."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())


def _check(prompts: list[str]) -> None:
    folded = {prompt.casefold().rstrip(".") for prompt in prompts}
    if len(folded) != len(prompts):
        raise SystemExit(f"{len(prompts) - len(folded)} prompts are there twice; reword them.")
    if long := [prompt for prompt in prompts if len(prompt) > LONGEST]:
        raise SystemExit(f"Longer than {LONGEST} characters: {long[0]}")


def main() -> None:
    text = "".join(f"{prompt}\n" for prompt in pool())
    if "--check" in sys.argv:
        sys.exit(0 if POOL.read_text(encoding="utf-8") == text else "The pool is out of date.")
    POOL.write_text(text, encoding="utf-8")
    print(f"{text.count(chr(10))} prompts in {POOL}")


if __name__ == "__main__":
    main()
