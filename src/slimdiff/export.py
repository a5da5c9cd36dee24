"""Slim pipelines for places where slimdiff is not.

``dense_`` pads a slim denoiser back to stock shapes: every runtime reads it, its answers are the
slim model's, and nothing is faster or smaller. ``write_self_contained`` writes a folder that
diffusers loads with ``trust_remote_code=True`` where slimdiff is not installed: the denoiser's
class comes with it, in one generated file that needs diffusers and torch only.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from . import attention, families
from .compression import plan_of
from .denoiser import CONFIG_KEY, component, denoiser
from .errors import SlimdiffError
from .files import read_json, write_json, write_text
from .plan import Plan
from .sites import Part, Site
from .surgery import reshape_

__all__ = ["dense_", "write_self_contained"]


def dense_(pipe: DiffusionPipeline) -> None:
    """Pad the slim denoiser with zeros to the shapes of the stock model, in place.

    Exact: padded query and key channels add nothing to any logit, padded value and hidden
    channels are read with weight zero. What differs between the softmax scales of the two widths,
    sqrt(d / r), goes into the queries. Raises SlimdiffError for a pipeline that is not slim.
    """
    plan, model = _plan(pipe), denoiser(pipe)
    cut = _cut_sites(_dense_sites(model), plan)
    slabs = [(part, site) for site in cut for part in site.parts]
    # First slab first: those before a slab are whole again, so that it starts where it did.
    for part, site in sorted(slabs, key=lambda slab: slab[0].start):
        _pad_(model.get_submodule(part.linear), part, site, plan.widths[site.name])
    for site in cut:
        module = model.get_submodule(site.module)
        if attention.is_attention(module):
            attention.fit_attention_(module, rescale=site.kind == "qk")
    model._internal_dict = type(model._internal_dict)(_stock_config(model))


def write_self_contained(pipe: DiffusionPipeline, folder: Path) -> None:
    """Save a slim pipeline into an empty folder together with the class of its denoiser.

    The file's name carries a hash of its text, since diffusers keeps all such files of a machine
    in one place. Raises SlimdiffError for a pipeline that is not slim.
    """
    plan, model, part = _plan(pipe), denoiser(pipe), component(pipe)
    text = _class_text(type(model))
    module = f"slim_{part}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    name = f"Slim{type(model).__name__}"
    pipe.save_pretrained(folder, safe_serialization=True)
    write_text(folder / part / f"{module}.py", text.replace("@MODULE@", module))
    config = {k: v for k, v in _saved(folder / part / "config.json").items() if k != CONFIG_KEY}
    recipe = _recipe(model, plan)
    write_json(folder / part / "config.json", {**config, "_class_name": name, "slim_plan": recipe})
    index = _saved(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, part: [module, name]})


def _plan(pipe: DiffusionPipeline) -> Plan:
    plan = plan_of(pipe)
    if plan is None:
        raise SlimdiffError(
            f"This {type(pipe).__name__} is not slim; expected a slim pipeline to export. Save a "
            "dense one with its own save_pretrained."
        )
    return plan


def _saved(path: Path) -> dict[str, Any]:
    return read_json(path, "configuration")


def _stock_config(model: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(model.config).items() if k != CONFIG_KEY}


def _stock(model: Any) -> Any:
    """A dense model of the same kind, without weights."""
    with torch.device("meta"):
        return type(model).from_config(_stock_config(model))


def _dense_sites(model: Any) -> list[Site]:
    return families.find(model).sites(_stock(model))


def _cut_sites(sites: list[Site], plan: Plan) -> list[Site]:
    return [site for site in sites if plan.widths.get(site.name, site.width) < site.width]


def _pad_(linear: nn.Module, part: Part, site: Site, width: int) -> None:
    """Insert zero channels after the ``width`` that every head of this slab has."""
    assert isinstance(linear, nn.Linear)
    start, size = part.start, site.heads * width

    def padded(x: Tensor) -> Tensor:
        slab = x[start : start + size].unflatten(0, (site.heads, width))
        pad = [0, 0] * (slab.dim() - 2) + [0, site.width - width]
        return torch.cat([x[:start], F.pad(slab, pad).flatten(0, 1), x[start + size :]])

    weight = linear.weight.detach()
    if part.reads:
        linear.weight = nn.Parameter(padded(weight.T).T.contiguous())
        linear.in_features = linear.weight.shape[1]
        return
    scale = (site.width / width) ** 0.5 if part.role == "query" else 1.0
    linear.weight = nn.Parameter(padded(weight) * scale)
    linear.out_features = linear.weight.shape[0]
    if linear.bias is not None:
        linear.bias = nn.Parameter(padded(linear.bias.detach()) * scale)


def _class_text(stock: type) -> str:
    """The generated module: our attention as it stands here, then the class around the stock."""
    template = (files("slimdiff") / "assets" / "self_contained.txt").read_text(encoding="utf-8")
    head = "# Generated by slimdiff. Needs diffusers and torch only.\n"
    return head + inspect.getsource(attention) + template.replace("@STOCK@", stock.__name__)


def _recipe(model: Any, plan: Plan) -> dict[str, Any]:
    """What the generated class does to the stock model: sizes of Linears, attentions to fit."""
    stock = _stock(model)
    cut = _cut_sites(families.find(model).sites(stock), plan)
    reshape_(stock, cut, plan.widths)
    names = dict.fromkeys(part.linear for site in cut for part in site.parts)
    rescaled: dict[str, bool] = {}
    for site in cut:
        if attention.is_attention(stock.get_submodule(site.module)):
            rescaled[site.module] = rescaled.get(site.module, False) or site.kind == "qk"
    return {
        "linears": {name: list(stock.get_submodule(name).weight.shape) for name in names},
        "attentions": rescaled,
    }
