"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline

from ..allocation import DEFAULT_POLICY, SHAPES
from ..budget import Budget
from ..calibration import check_statistics
from ..decomposition import METHODS
from ..denoiser import denoiser
from ..errors import SlimdiffError
from ..gathering import SAVE_EVERY
from ..pipelines import open_pipeline, preset, resolve_device
from ..policies import POLICIES
from ..prompts import NUM_PROMPTS, read_prompts
from ..sampling import CALIBRATION_STEPS, Sampling
from ..statistics import Statistics
from ..store import load
from ..weighting import WEIGHTS

__all__ = [
    "Budgeting",
    "Opening",
    "budget_options",
    "calibration_options",
    "force_option",
    "max_moment_option",
    "method_option",
    "model_options",
    "pool_of",
    "prompt_options",
    "rounds_option",
    "sampling_from",
    "sampling_options",
    "save_every_option",
    "weights_option",
]

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)
SHIPPED_POOL = Path(str(files("slimdiff") / "assets" / "prompts.txt"))

force_option = click.option("--force", is_flag=True, help="Replace an existing output.")


@dataclass(frozen=True)
class Opening:
    """How to load a model."""

    dtype: str | None
    device: str | None
    variant: str | None
    revision: str | None
    trust_remote_code: bool
    offload: bool
    device_map: str | None

    def open(self, model: str, dtype: str | None = None) -> DiffusionPipeline:
        """Load ``model``; ``dtype`` is used where the user named none."""
        name = self.dtype or dtype
        return open_pipeline(
            model,
            dtype=getattr(torch, name) if name else None,
            device=resolve_device(self.device),
            variant=self.variant,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            **self._place(),
        )

    def open_slim(self, folder: Path, dense: DiffusionPipeline) -> DiffusionPipeline:
        """Load a slim folder where and as ``dense`` was loaded."""
        place = {k: v for k, v in self._place().items() if v is not None}
        device, dtype = resolve_device(self.device), denoiser(dense).dtype
        return load(folder, device=device, dtype=dtype, **place)

    def _place(self) -> dict[str, Any]:
        if self.offload and self.device_map:
            raise SlimdiffError("--offload and --device-map exclude each other. Choose one.")
        return {"offload": self.offload, "device_map": self.device_map}

    def open_source(self, stats: Statistics) -> DiffusionPipeline:
        """Load the model that ``stats`` were gathered from, and make sure that it is that one."""
        source = stats.header.source
        pipe = self.open(source.name, source.dtype)
        check_statistics(pipe, stats)
        return pipe


@dataclass(frozen=True)
class Budgeting:
    """How small or fast, and by which policy."""

    params: str | None
    pool: str | None
    macs: str | None
    bytes: str | None
    latency: str | None
    policy: str
    multiple: int
    only: tuple[str, ...]
    skip: tuple[str, ...]
    shapes: int

    def budget(self, default_pool: str | None = None) -> Budget:
        """What was asked, or ``default_pool`` if nothing was."""
        return Budget(**self.asked() or {"pool": default_pool})

    def asked(self) -> dict[str, str]:
        """The amounts that were given, by name."""
        names = ("params", "pool", "macs", "bytes", "latency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def allocation(self) -> dict[str, Any]:
        """Keyword arguments of :func:`slimdiff.allocate`."""
        wanted = ("policy", "multiple", "only", "skip", "shapes")
        return {name: getattr(self, name) for name in wanted}


def model_options(command: Command) -> Command:
    """--device --dtype --variant --revision and the like, gathered as ``opening``."""
    options = [
        click.option("--device", help="cpu, cuda, cuda:1, mps. Default: the best there is."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            help="Default: float32 on a CPU, float16 elsewhere; a slim folder's own.",
        ),
        click.option("--variant", help="Weight variant, such as fp16."),
        click.option("--revision", help="Branch, tag or commit on the hub."),
        click.option("--trust-remote-code", is_flag=True, help="Run code from the model folder."),
        click.option(
            "--offload", is_flag=True, help="Each part on the device only while it runs."
        ),
        click.option("--device-map", help="Spread the parts over the GPUs, such as balanced."),
    ]
    return _gathered(command, options, "opening", Opening)


def budget_options(command: Command) -> Command:
    """Budgets, --policy, --multiple, --only, --skip and --shapes, gathered as ``budgeting``."""
    amount = "a share (0.9), a count (759.5M) or a reduction (-100M)"
    options = [
        click.option("--params", help=f"Denoiser parameters to keep: {amount}."),
        click.option("--pool", help=f"Slimmable parameters to keep: {amount}."),
        click.option("--macs", help="Multiply-adds to keep, said likewise."),
        click.option("--bytes", help="Bytes of weights to keep, said likewise (1.6GB)."),
        click.option("--latency", help="Share of the time a step to keep, measured here (0.75)."),
        click.option(
            "--policy",
            type=click.Choice(list(POLICIES)),
            default=DEFAULT_POLICY,
            show_default=True,
            help="How the budget is shared out.",
        ),
        click.option(
            "--multiple", type=int, default=8, show_default=True, help="Grid of the widths."
        ),
        click.option("--only", multiple=True, metavar="PATTERN", help="Cut only these sites."),
        click.option("--skip", multiple=True, metavar="PATTERN", help="Leave these sites whole."),
        click.option(
            "--shapes",
            type=click.IntRange(1),
            default=SHAPES,
            show_default=True,
            help="Most different shapes of a repeated block; compilers like few.",
        ),
    ]
    return _gathered(command, options, "budgeting", Budgeting)


def sampling_options(command: Command) -> Command:
    """How pictures are drawn; gathered as the dict ``drawing`` of what the user gave."""
    return _gathered(command, _drawing_options(), "drawing", _given)


def calibration_options(command: Command) -> Command:
    """How pictures are drawn, and how many steps of that calibration takes; as ``drawing``."""
    steps = click.option(
        "--calibration-steps",
        type=click.IntRange(1),
        help=f"Denoising steps of calibration. Default: --steps, {CALIBRATION_STEPS} at most.",
    )
    return _gathered(command, [*_drawing_options(), steps], "drawing", _given)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _drawing_options() -> list[Callable[[Command], Command]]:
    return [
        click.option("--steps", type=click.IntRange(1), help="Denoising steps. Default: 20."),
        click.option(
            "--guidance", type=float, help="Guidance scale. Default: the pipeline's own."
        ),
        click.option("--negative-prompt", help="What the pictures should not show."),
        click.option("--height", type=click.IntRange(8), help="Height in pixels."),
        click.option("--width", type=click.IntRange(8), help="Width in pixels."),
        click.option("--num-frames", type=click.IntRange(1), help="Frames of a video."),
        click.option("--batch-size", type=click.IntRange(1), help="Prompts a batch. Default: 8."),
        click.option(
            "--seed", type=click.IntRange(0, 2**62), help="Seed of the first prompt. Default: 0."
        ),
    ]


method_option = click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="exact",
    show_default=True,
    help="Closed forms: ours, or the published ones.",
)


save_every_option = click.option(
    "--save-every",
    type=click.FloatRange(0),
    default=SAVE_EVERY,
    show_default=True,
    help="Seconds between two saves of a calibration.",
)


max_moment_option = click.option(
    "--max-moment-mib",
    type=click.FloatRange(0, min_open=True),
    help="Most MiB of sums in memory; what does not fit takes another pass of sampling.",
)


rounds_option = click.option(
    "--rounds",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Groups in which projections are refitted after the cut (error feedback).",
)


weights_option = click.option(
    "--timestep-weights",
    type=click.Choice(WEIGHTS),
    default="uniform",
    show_default=True,
    help="How much each denoising step counts in the moments.",
)


def prompt_options(command: Command) -> Command:
    """--prompts and --num-prompts."""
    for option in (
        click.option(
            "--prompts",
            type=PATH,
            help="Text file, one prompt a line. Default: the model's own, else many kinds.",
        ),
        click.option(
            "--num-prompts",
            type=click.IntRange(1),
            default=NUM_PROMPTS,
            show_default=True,
            help="Calibration prompts.",
        ),
    ):
        command = option(command)
    return command


def sampling_from(model: str, drawing: dict[str, Any], known: dict[str, Any]) -> Sampling:
    """What the user gave, else what is ``known`` of the model, else what its preset likes."""
    found = preset(model)
    likes = {"guidance": found.guidance} if found else {}
    return Sampling(**{**likes, **known, **drawing})


def pool_of(model: str, prompts: Path | None) -> list[str]:
    """The prompt pool: the user's file, the embedded pipeline's own, or one for all models."""
    found = preset(model)
    return read_prompts(prompts or (found.prompts if found else SHIPPED_POOL))


def _gathered(
    command: Command, options: list[Callable[[Command], Command]], name: str, build: Command
) -> Command:
    """Add ``options`` to ``command`` and hand them over as one argument ``name``."""
    own: set[str] = set()

    @wraps(command)
    def wrapper(**given: Any) -> Any:
        mine = {key: given.pop(key) for key in own}
        return command(**given, **{name: build(**mine)})

    wrapped: Command = wrapper
    for option in reversed(options):
        wrapped = option(wrapped)
    added = wrapped.__click_params__[-len(options) :]  # pyright: ignore
    own.update(param.name for param in added)
    return wrapped
