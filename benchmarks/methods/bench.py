"""One pipeline, its calibrations, and the slim pipeline of any cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from slimdiff import Budget, Plan, Statistics, calibrate, compress_, families, finish
from slimdiff.allocation import SHAPES
from slimdiff.compression import plan_of
from slimdiff.decomposition import METHODS, Basis, Method
from slimdiff.denoiser import denoiser, fingerprint
from slimdiff.environment import device_name, versions
from slimdiff.errors import SlimdiffError
from slimdiff.files import read_json, write_json, write_tensors
from slimdiff.gains import MOST_PROMPTS, gain_calls
from slimdiff.pipelines import EMOJI, open_pipeline, preset
from slimdiff.prompts import read_prompts
from slimdiff.recipe import copy_pipeline, cut
from slimdiff.sampling import IndexedPrompt, Sampling
from slimdiff.sites import Site, pool_parameters
from slimdiff.surgery import cut_site_, reader_weights
from slimdiff.token_sampling import SHARE

from .measure import Reference, record
from .peers import PEERS, Moments
from .prompts import FIRST, calibration_prompts, held_out_prompts
from .settings import OURS, Settings

__all__ = ["Bench", "Cell", "Forms"]

Forms = Mapping[str, Method]
"""Kind of site -> closed forms."""


@dataclass(frozen=True)
class Cell:
    """One slim model: a method at a share of the pool, calibrated on the prompts of a seed.

    ``ranks`` is the method whose statistics choose the widths, "" for the method itself.
    ``rounds`` of error feedback follow the cut.
    """

    method: str
    policy: str
    pool: float
    seed: int
    ranks: str = ""
    rounds: int = 0

    @property
    def row(self) -> str:
        """The cell's line in tables: all but pool and seed."""
        ranks = f" of {self.ranks}" if self.ranks else ""
        rounds = f" {self.rounds} rounds" if self.rounds else ""
        return f"{self.method} {self.policy}{ranks}{rounds}"

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.row.replace(' ', '-')}-{self.pool:g}-{self.seed}"


class Bench:
    """The embedded pipeline and all that is gathered of it, kept in the folder ``work``.

    ``forms`` names the closed forms of methods beyond slimdiff's own.
    """

    def __init__(
        self, settings: Settings, work: Path, forms: Mapping[str, Forms] | None = None
    ) -> None:
        found = preset(EMOJI)
        assert found is not None
        self.settings, self.work = settings, work
        self.forms: dict[str, Forms] = {**METHODS, **(forms or {})}
        self.dense: DiffusionPipeline = open_pipeline(EMOJI)
        self.prompts = read_prompts(found.prompts)
        model = denoiser(self.dense)
        self.sites = families.find(model).sites(model)
        self._statistics: dict[tuple[str, int], Statistics] = {}
        self._moments: dict[tuple[str, int], Moments] = {}
        self._reference: Reference | None = None
        self._keep_settings()

    @property
    def sampling(self) -> Sampling:
        """How everything is drawn, unless robustness says otherwise."""
        return self.settings.sampling

    @property
    def provenance(self) -> dict[str, Any]:
        """What the figures depend on."""
        model = denoiser(self.dense)
        return {
            "settings": self.settings.to_dict(),
            "sampling": self.sampling.to_dict(),
            "defaults": {
                "calibration_steps": self.sampling.calibrating.steps,
                "tokens": SHARE,
                "gain_prompts": MOST_PROMPTS,
                "shapes": SHAPES,
            },
            "model": EMOJI,
            "fingerprint": fingerprint(model),
            "parameters": model.num_parameters(),
            "pool": pool_parameters(self.sites),
            "device": device_name(model.device),
            "versions": versions(),
        }

    @property
    def reference(self) -> Reference:
        """The dense pipeline on the held-out prompts, drawn once a run."""
        if self._reference is None:
            self._reference = record(self.dense, self.held_out, self.sampling)
        return self._reference

    @property
    def held_out(self) -> list[IndexedPrompt]:
        """Prompts that no seed calibrates on."""
        return held_out_prompts(self.prompts, self.settings.held_out)

    def calibration(self, seed: int) -> list[IndexedPrompt]:
        """The calibration prompts of one seed."""
        return calibration_prompts(self.prompts, seed, self.settings.calibration)

    def statistics(self, method: str, seed: int) -> Statistics:
        """slimdiff's statistics; sums are gathered once and finished for both methods."""
        if (method, seed) not in self._statistics:
            folder = self.work / "statistics" / f"{method}-{seed}"
            if method != "exact" and not Statistics.exists(folder):
                finish(self.dense, self.statistics("exact", seed), method).save(folder)
            self._statistics[method, seed] = calibrate(
                self.dense,
                [text for _, text in self.calibration(seed)],
                sampling=self.sampling,
                start=FIRST * seed,
                name=EMOJI,
                method=method,
                folder=folder,
            )
        return self._statistics[method, seed]

    def moments(self, peer: str, seed: int) -> Moments:
        """What a peer needs to see, gathered once a seed; nothing if it sees weights only."""
        gather = PEERS[peer].gather
        if gather is None:
            return {}
        if (peer, seed) not in self._moments:
            path = self.work / "moments" / f"{peer}-{seed}.safetensors"
            if not path.exists():
                prompts = self.calibration(seed)
                found = gather(self.dense, self.sites, prompts, self.sampling.calibrating)
                write_tensors(path, found)
            self._moments[peer, seed] = load_file(path)
        return self._moments[peer, seed]

    def prices(self, peer: str, seed: int) -> dict[str, float]:
        """What a peer's units cost, measured once a seed on the calls that our gains are from."""
        path, measured = self.work / "prices" / f"{peer}-{seed}.json", PEERS[peer].measured
        assert measured is not None
        if not path.exists():
            calls = gain_calls(self.dense, self.statistics("exact", seed).header)
            moments = self.moments(peer, seed)
            write_json(path, measured.price(denoiser(self.dense), self.sites, moments, calls))
        return read_json(path, "benchmark result")

    def plan(self, cell: Cell) -> Plan:
        """The widths of a cell of ours or of the paper's, as slimdiff's own recipe finds them."""
        method = cell.ranks or cell.method
        path = self.work / "plans" / f"{Cell(method, cell.policy, cell.pool, cell.seed).name}.json"
        if not path.exists():
            stats, budget = self.statistics(method, cell.seed), Budget(pool=cell.pool)
            ours = (method, cell.policy) == OURS
            multiple = self.settings.our_multiple if ours else self.settings.multiple
            options = {"policy": cell.policy, "multiple": multiple}
            found = plan_of(cut(self.dense, stats, budget, **options))
            assert found is not None
            found.save(path)
        return Plan.load(path)

    def predicted(self, cell: Cell) -> float | None:
        """The error that a plan foretells for the closed forms it was made for; else None."""
        if cell.method in PEERS or cell.ranks or cell.rounds:
            return None
        return self.plan(cell).predicted_error

    def slim(self, cell: Cell) -> tuple[DiffusionPipeline, int]:
        """The slim pipeline of a cell, and the parameters its denoiser has or would have."""
        if cell.method in PEERS:
            return self._slim_by_peer(cell)
        plan = self.plan(cell)
        if cell.ranks:
            pipe = self._cut(plan, self.forms[cell.method], cell.seed)
        else:
            pipe = copy_pipeline(self.dense)
            compress_(pipe, self.statistics(cell.method, cell.seed), plan)
        if cell.rounds:
            from slimdiff.feedback import repair_

            repair_(self.dense, pipe, self.statistics(cell.method, cell.seed), cell.rounds)
        return pipe, denoiser(pipe).num_parameters()

    def _slim_by_peer(self, cell: Cell) -> tuple[DiffusionPipeline, int]:
        pipe, peer = copy_pipeline(self.dense), PEERS[cell.method]
        moments = self.moments(cell.method, cell.seed)
        slimming = denoiser(pipe), self.sites, moments, cell.pool
        if cell.policy == "measured":
            assert peer.measured is not None
            left = peer.measured.slim_(*slimming, self.prices(cell.method, cell.seed))
        else:
            left = peer.slim_(*slimming, torch.Generator().manual_seed(cell.seed))
        kept = self.pool_kept(left)
        if not 0.99 * cell.pool <= kept <= cell.pool:
            raise SlimdiffError(
                f"{cell.method} keeps {kept:.4f} of the pool where {cell.pool} was asked; "
                "expected at most that, and no less than 99 % of it. Mend its rounding."
            )
        return pipe, left

    def pool_kept(self, parameters: int) -> float:
        """Share of the pool that a denoiser of ``parameters`` still has."""
        gone = denoiser(self.dense).num_parameters() - parameters
        return 1 - gone / pool_parameters(self.sites)

    def _cut(self, plan: Plan, forms: Forms, seed: int) -> DiffusionPipeline:
        """Cut to the widths of ``plan`` by closed forms that need not be those it was made for."""
        pipe, stats = copy_pipeline(self.dense), self.statistics("exact", seed)
        model = denoiser(pipe)
        for site in self.sites:
            width = plan.widths.get(site.name, site.width)
            if width < site.width:
                sums, form = stats.sums[site.name], forms[site.kind]
                basis = self._known_basis(site, form, seed)
                basis = basis or form.decompose(sums, reader_weights(model, site))
                cut_site_(model, site, form.maps(basis, sums, width))
        return pipe

    def _known_basis(self, site: Site, form: Method, seed: int) -> Basis | None:
        """The basis of a site, if ``form`` is one of slimdiff's own that statistics hold."""
        for method, forms in METHODS.items():
            if forms[site.kind] is form:
                return self.statistics(method, seed).bases[site.name]
        return None

    def _keep_settings(self) -> None:
        """Write down what the folder is for; refuse one that is for something else."""
        path, now = self.work / "settings.json", self.provenance
        if not path.exists():
            write_json(path, now)
        self.refuse_other(read_json(path, "benchmark's settings"), str(self.work))

    def refuse_other(self, provenance: Mapping[str, Any], place: str) -> None:
        """Raise SlimdiffError if results from ``place`` are of another model or other settings.

        Seeds stand beside each other: some may be measured first and others later. slimdiff's own
        defaults count as settings.
        """
        there, here = (
            {**p["settings"], **p.get("defaults", {}), "seeds": None, "model": p["fingerprint"]}
            for p in (provenance, self.provenance)
        )
        differ = [name for name, value in here.items() if there.get(name) != value]
        if differ:
            raise SlimdiffError(
                f"'{place}' holds results with other {', '.join(differ)}. Choose another --work, "
                "or remove this one."
            )
