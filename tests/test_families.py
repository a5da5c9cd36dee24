"""The contract that every family keeps, on its tiny model. A new family is found by itself."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from slimdiff import Plan, SlimdiffError
from slimdiff.decomposition import EXACT, reader_moments
from slimdiff.denoiser import CONFIG_KEY, METHOD, output_of
from slimdiff.export import dense_
from slimdiff.families import families
from slimdiff.linalg import centre
from slimdiff.lora import carry_over
from slimdiff.recording import TokenSampling, empty_sums, recording
from slimdiff.surgery import cut_site_, reader_weights, trial

TINY = {f.name: (f, f.tiny) for f in families()}
TINY |= {name: (f, tiny) for f in families() for name, tiny in f.variants.items()}
CALLS = 6


def varied(inputs: dict, call: int) -> dict:
    """The same call with other floating-point inputs."""
    generator = torch.Generator().manual_seed(call)
    return {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype)
        if v.is_floating_point() and v.dim() > 1 and "mask" not in k
        else v
        for k, v in inputs.items()
    }


def as_double(inputs: dict) -> dict:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


class Watched:
    """A tiny float64 model of a family, its sites, and the sums over a few calls."""

    def __init__(self, family, tiny) -> None:
        model, inputs = tiny()
        # Some families start with zero gates; without weights of size one a cut shows nothing.
        generator = torch.Generator().manual_seed(7)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.05 * noise
        self.model: nn.Module = model.double()
        self.calls = [as_double(varied(inputs, i)) for i in range(CALLS)]
        self.sites = family.sites(self.model)
        self.free = [site for site in self.sites if site.locked is None]
        self.sums = empty_sums(self.sites, torch.device("cpu"))
        with recording(self.model, self.sites, self.sums, tokens=TokenSampling(None)):
            self.outputs = self.run(self.model)
        self.bases = {
            s.name: EXACT[s.kind].decompose(self.sums[s.name], reader_weights(self.model, s))
            for s in self.free
        }

    def run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [output_of(model(**call)) for call in self.calls]

    def maps(self, site, width):
        return EXACT[site.kind].maps(self.bases[site.name], self.sums[site.name], width)

    def first_answers(self, site) -> Tensor:
        """What the site's readers answer to what the dense model would give its module."""
        seen = {part.linear: [] for part in site.parts if part.reads}
        handles = [
            self.model.get_submodule(name).register_forward_hook(
                lambda m, args, out, name=name: seen[name].append(out.flatten(0, -2))
            )
            for name in seen
        ]
        self.run(self.model)
        for handle in handles:
            handle.remove()
        return torch.cat([answer for answers in seen.values() for answer in answers])


@pytest.fixture(scope="module", params=TINY)
def watched(request):
    return Watched(*TINY[request.param])


def test_there_are_sites_of_every_kind_the_family_has(watched):
    assert watched.free
    assert len({site.name for site in watched.sites}) == len(watched.sites)
    starts: dict[str, list[int]] = {}
    for site in watched.sites:
        for part in site.parts:
            assert isinstance(watched.model.get_submodule(part.linear), nn.Linear)
        for linear in {part.linear for part in site.parts}:
            first = min(part.start for part in site.parts if part.linear == linear)
            starts.setdefault(linear, []).append(first)
    # Last slab first, so that cutting sites in order moves no slab to come.
    assert all(found == sorted(found, reverse=True) for found in starts.values())


def test_hooks_leave_nothing(watched):
    for module in watched.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_full_rank_is_the_identity(watched):
    model = copy.deepcopy(watched.model)
    for site in watched.free:
        cut_site_(model, site, watched.maps(site, site.width))
    for found, wanted in zip(watched.run(model), watched.outputs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_a_cut_shrinks_and_changes_and_is_taken_back(watched):
    before = sum(p.numel() for p in watched.model.parameters())
    for site in watched.free:
        width = site.width // 2
        with trial(watched.model, site, watched.maps(site, width)):
            after = sum(p.numel() for p in watched.model.parameters())
            changed = watched.run(watched.model)
        assert before - after == site.parameters() - site.parameters(width)
        assert not all(
            torch.allclose(a, b, rtol=0, atol=1e-12)
            for a, b in zip(changed, watched.outputs, strict=True)
        )
    for found, wanted in zip(watched.run(watched.model), watched.outputs, strict=True):
        assert torch.equal(found, wanted)


def test_predicted_is_the_measured_error_of_a_site(watched):
    """Value-output and feed-forward: of what its readers say. (Query-key: tests of its own.)"""
    for site in watched.free:
        if site.kind == "qk":
            continue
        width = max(1, site.width // 2)
        basis, sums = watched.bases[site.name], watched.sums[site.name]
        dense = watched.first_answers(site)
        form = EXACT[site.kind]
        with trial(watched.model, site, form.maps(basis, sums, width)):
            slim = watched.first_answers(site)
        moments = reader_moments(sums)
        readers = reader_weights(watched.model, site).flatten(0, 1).chunk(len(moments), -1)
        whole = sum(
            float((reader * (centre(moment)[1] @ reader)).sum() * moment[-1, -1])
            for reader, moment in zip(readers, moments, strict=True)
        )
        measured = float((slim - dense).square().sum()) / whole
        assert measured == pytest.approx(float(basis.errors[width]), rel=1e-3, abs=1e-6), site.name


def plan_for(model, sites, widths) -> Plan:
    return Plan(
        widths=widths,
        full={site.name: site.width for site in sites},
        per_unit={site.name: site.parameters(1) for site in sites},
        predicted={},
        parameters=1,
        pool=1,
        budget={},
        policy="uniform",
        multiple=1,
        method="exact",
        denoiser=type(model).__name__,
        model_hash="",
    )


def halved(watched) -> nn.Module:
    """A copy with every free site cut to half its width, its plan in its configuration."""
    model = copy.deepcopy(watched.model)
    widths = {site.name: site.width // 2 for site in watched.free}
    for site in watched.free:
        cut_site_(model, site, watched.maps(site, widths[site.name]))
    plan = plan_for(model, watched.free, widths)
    model.register_to_config(**{CONFIG_KEY: {"quant_method": METHOD, "plan": vars(plan)}})
    return model


def test_saved_and_loaded_answers_alike(watched, tmp_path):
    """In float32, since some models load parts of themselves in nothing wider."""
    model = halved(watched).float()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for call in watched.calls:
        call = {k: v.float() if v.is_floating_point() else v for k, v in call.items()}
        with torch.no_grad():
            assert torch.equal(output_of(loaded(**call)), output_of(model(**call)))


def test_dense_export_answers_as_the_slim_model(watched):
    model = halved(watched)
    expected = watched.run(model)
    dense_(SimpleNamespace(transformer=model))
    shapes = {name: p.shape for name, p in watched.model.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    for found, wanted in zip(watched.run(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_an_adapter_carried_over_is_the_slimmed_adapter(watched):
    """Slimming W + B A by the maps of W equals slimming W and carrying B A over."""
    generator = torch.Generator().manual_seed(1)
    fused, adapter = copy.deepcopy(watched.model), {}
    for name in {part.linear for site in watched.free for part in site.parts}:
        linear = fused.get_submodule(name)
        a = torch.randn(2, linear.in_features, generator=generator, dtype=torch.float64)
        b = torch.randn(linear.out_features, 2, generator=generator, dtype=torch.float64)
        linear.weight.data += b @ a
        adapter |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    maps = {site.name: watched.maps(site, site.width // 2) for site in watched.free}
    slim = halved(watched)
    for site in watched.free:
        cut_site_(fused, site, maps[site.name])
    carried = carry_over(adapter, watched.sites, maps)
    for name in {key.partition(".lora_")[0] for key in adapter}:
        a, b = (carried.state_dict[f"{name}.lora_{side}.weight"] for side in "AB")
        plain, whole = slim.get_submodule(name), fused.get_submodule(name)
        torch.testing.assert_close(plain.weight + b @ a, whole.weight, rtol=1e-9, atol=1e-9)
        if whole.bias is not None:
            bias = plain.bias + carried.biases.get(name, 0.0)
            torch.testing.assert_close(bias, whole.bias, rtol=1e-9, atol=1e-9)
    assert 0 < carried.lost_share < 1
    again = carry_over(carried.state_dict, watched.sites, maps)
    assert again.lost == {}


def test_locked_sites_refuse(watched):
    locked = [site for site in watched.sites if site.locked]
    site = (locked or watched.sites)[0]
    sites = [type(site)(**{**vars(site), "locked": site.locked or "a reason"})]
    plan = plan_for(watched.model, [site], {site.name: site.width - 1})
    with pytest.raises(
        SlimdiffError, match=rf"Site '{site.name}' is locked \({sites[0].locked}\)"
    ):
        plan.check(sites)
