"""Fetch the drawings and their names; write `drawings.npz` and `drawings.json`.

Three npm packages hold everything: Noto's drawings, Fluent's drawings, and the English label
and tags of every emoji. Skin-tone variants are left out: they are five near-copies of one
drawing. About 5 % of the drawings are held out (see `choose_held_out`).

    python -m training.emoji.data [--work FOLDER]
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from training.emoji.common import (
    ARTISTS,
    SIZE,
    Drawing,
    base_parser,
    fraction_of,
    save_drawings,
)

NAMES = ("emojibase-data@17.0.0", "package/en/data.json")
PICTURES = {
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/", ".png"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/", ".webp"),
}
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HELD_OUT_SHARE = 0.05
SMOKE_FOLDER = Path(__file__).parents[2] / "tests" / "training" / "drawings"


def fetch(package: str, folder: Path) -> Path:
    """Download a package with `npm pack`, unless it is there already."""
    name, version = package.lstrip("@").replace("/", "-").rsplit("@", 1)
    path = folder / f"{name}-{version}.tgz"
    if not path.exists():
        if shutil.which("npm") is None:
            raise SystemExit(f"npm is needed to fetch {package}; or put {path.name} in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(folder.resolve()), package],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return path


def code_of(hexcode: str) -> str:
    """One spelling of a code point sequence: packages differ in FE0F and leading zeros."""
    parts = [part.lstrip("0") for part in hexcode.lower().split("-")]
    return "-".join(part for part in parts if part != "fe0f")


def read_names(archive: Path) -> dict[str, tuple[str, list[str]]]:
    """Label and tags of every emoji by code."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(NAMES[1])
        if member is None:
            raise SystemExit(f"{archive}: no {NAMES[1]} inside")
        rows = json.load(member)
    return {code_of(row["hexcode"]): (row["label"], row.get("tags") or []) for row in rows}


def flatten(image: Image.Image) -> np.ndarray:
    """The picture on white, 64 x 64, as bytes."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    flat = white.convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def read_pictures(archive: Path, prefix: str, suffix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Code and picture of every drawing in a package, in the order of their names."""
    with tarfile.open(archive) as tar:
        found = sorted(n for n in tar.getnames() if n.startswith(prefix) and n.endswith(suffix))
        for name in found:
            code = code_of(name[len(prefix) : -len(suffix)])
            member = tar.extractfile(name)
            if member is not None and not SKIN_TONES & set(code.split("-")):
                yield code, flatten(Image.open(io.BytesIO(member.read())))


def from_packages(folder: Path) -> tuple[list[Drawing], list[np.ndarray]]:
    """All drawings that have a name, artist by artist."""
    names = read_names(fetch(NAMES[0], folder))
    drawings, pictures = [], []
    for artist, (package, prefix, suffix) in PICTURES.items():
        for code, picture in read_pictures(fetch(package, folder), prefix, suffix):
            if code in names:
                label, tags = names[code]
                drawings.append(Drawing(artist, code, label, list(tags)))
                pictures.append(picture)
    return drawings, pictures


def from_folder(folder: Path) -> tuple[list[Drawing], list[np.ndarray]]:
    """The few drawings kept with the tests: `labels.json` beside PNG files."""
    rows = json.loads((folder / "labels.json").read_text())
    drawings = [Drawing(row["artist"], row["code"], row["label"], row["tags"]) for row in rows]
    return drawings, [flatten(Image.open(folder / row["file"])) for row in rows]


def choose_held_out(drawings: list[Drawing]) -> list[Drawing]:
    """Mark about 5 % of the drawings as held out, the same ones every time.

    Only concepts that both artists drew are eligible, and one of the two drawings stays in
    training: what is held out is the combination, never the concept or the artist.
    """
    drawn = Counter(drawing.code for drawing in drawings)

    def held_out(drawing: Drawing) -> bool:
        if drawn[drawing.code] < len(ARTISTS):
            return False
        if fraction_of(f"held-out:{drawing.code}") >= HELD_OUT_SHARE * len(ARTISTS):
            return False
        return ARTISTS[int(fraction_of(f"artist:{drawing.code}") * len(ARTISTS))] == drawing.artist

    return [replace(drawing, held_out=held_out(drawing)) for drawing in drawings]


def main(argv: list[str] | None = None) -> None:
    """Write the data set into the work folder."""
    parser = base_parser(__doc__)
    parser.add_argument("--packages", type=Path, help="where the packages are (default: WORK/npm)")
    args = parser.parse_args(argv)
    if args.smoke:
        drawings, pictures = from_folder(SMOKE_FOLDER)
    else:
        drawings, pictures = from_packages(args.packages or args.work / "npm")
    drawings = choose_held_out(drawings)
    save_drawings(args.work, drawings, np.stack(pictures))
    held = sum(drawing.held_out for drawing in drawings)
    counts = Counter(drawing.artist for drawing in drawings)
    print(f"{len(drawings)} drawings {dict(counts)}, {held} held out, in {args.work}")


if __name__ == "__main__":
    main()
