"""Models, prompts and options that cannot be used."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from .fault import Damage, Fault, started

__all__ = ["INPUTS", "changed_weight"]

_REASON = r"(?<=\().*?(?=\)[.;])"
"""What another library says, in parentheses."""


def _weights(root: Path, component: str) -> Path:
    return next((root / "model" / component).glob("*.safetensors"))


def changed_weight(component: str, name: str, value: float) -> Damage:
    """Every entry of the first weight whose name holds ``name`` becomes ``value``."""

    def damage(root: Path, stack: ExitStack) -> None:
        path = _weights(root, component)
        tensors = load_file(path)
        tensors[next(key for key in sorted(tensors) if name in key)].fill_(value)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def _file(name: str, data: bytes) -> Damage:
    return lambda root, stack: (root / name).write_bytes(data) and None


def _empty_folder(root: Path, stack: ExitStack) -> None:
    (root / "empty").mkdir()


def _truncated(root: Path, stack: ExitStack) -> None:
    path = _weights(root, "unet")
    path.write_bytes(path.read_bytes()[:-100])


def _unknown_class(root: Path, stack: ExitStack) -> None:
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(root / "ddpm")


def _own_code(root: Path, stack: ExitStack) -> None:
    assert started("export slim --self-contained -o foreign", root).returncode == 0


INPUTS = (
    Fault("No such model", "inspect no-such-thing"),
    Fault("A folder that is no pipeline", "inspect empty", _empty_folder),
    Fault("A weight file that was cut short", "inspect model", _truncated, elide=_REASON),
    Fault(
        "NaN in a weight",
        "inspect model",
        changed_weight("unet", "conv_in.weight", float("nan")),
    ),
    Fault(
        "Infinity in the text encoder",
        "inspect model",
        changed_weight("text_encoder", "token_embedding", float("inf")),
    ),
    Fault("A pickled checkpoint", "inspect model.ckpt", _file("model.ckpt", b"\x80\x04")),
    Fault("A denoiser of an unknown architecture", "slim ddpm -o new", _unknown_class),
    Fault("A slim model slimmed again", "slim slim -o new"),
    Fault("A slim model calibrated", "calibrate slim -o new"),
    Fault("A model with code of its own", "generate foreign thing -o thing.png", _own_code),
    Fault("A prompt file that is not there", "calibrate model --prompts lost.txt -o new"),
    Fault(
        "An empty prompt file",
        "calibrate model --prompts none.txt -o new",
        _file("none.txt", b"\n# nothing\n"),
    ),
    Fault(
        "Too few prompts to hold any out",
        "calibrate model --prompts few.txt -o new",
        _file("few.txt", b"one\ntwo\n"),
    ),
    Fault(
        "A prompt file that is not text",
        "calibrate model --prompts picture.txt -o new",
        _file("picture.txt", b"\x89PNG\xff\xfe"),
        elide=_REASON,
    ),
    Fault("A device that cannot be used", "inspect model --device cuda:7", elide=_REASON),
    Fault(
        "A size that the pipeline refuses",
        "calibrate model --height 13 --width 16 -o new",
        elide=r"(?<=sample: ).*(?=\. Check)",
    ),
    Fault(
        "Less memory for sums than one site takes",
        "calibrate model --max-moment-mib 0.001 -o new",
    ),
    Fault("Half a size", "calibrate model --height 16 -o new"),
    Fault("A forgotten option", "slim model", elide="(?<=option ).*"),
    Fault("A seed below nought", "calibrate model --seed -1 -o new", elide="(?<='--seed'): .*"),
)
