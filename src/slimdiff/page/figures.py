"""A report's figures as they stand in report.json, validated before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import SlimdiffError
from ..files import read_json

__all__ = ["Amounts", "Curve", "Fidelity", "Figures", "Shown", "SiteRow", "read_figures"]

Count = Annotated[int, Field(ge=0, le=10**18)]
Share = Annotated[float, Field(ge=0, le=1e6)]
Text = Annotated[str, Field(max_length=100_000)]
Scalar = Text | Count | float | None


@dataclass(frozen=True)
class Amounts:
    """A figure of the dense and of the slim model, and the share that is kept."""

    dense: Count
    slim: Count
    kept: Share


@dataclass(frozen=True)
class Time:
    """Milliseconds of one denoiser call."""

    dense_ms: Share
    slim_ms: Share
    ratio: Share
    runs: Count


@dataclass(frozen=True)
class Fidelity:
    """Errors against the dense pipeline (:class:`slimdiff.fidelity.Fidelity`)."""

    noise_rel_mse: float
    latent_rel_mse: float
    psnr_db: float
    ssim: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: Mapping[str, Annotated[tuple[float, ...], Field(max_length=100_000)]] = field(
        default_factory=dict
    )
    calls: Annotated[tuple[float, ...], Field(max_length=10_000)] = ()


@dataclass(frozen=True)
class SiteRow:
    """One site: width before and after, parameters kept, share of the predicted error."""

    name: Text
    full: Annotated[int, Field(ge=1, le=10**9)]
    width: Annotated[int, Field(ge=0, le=10**9)]
    parameters: Count
    share: Share


@dataclass(frozen=True)
class Curve:
    """Share of a site's own output lost at some widths."""

    widths: Annotated[tuple[Count, ...], Field(max_length=1000)]
    errors: Annotated[tuple[float, ...], Field(max_length=1000)]


@dataclass(frozen=True)
class Shown:
    """One prompt whose pictures are kept in ``pictures/``, and their scores."""

    prompt: Text
    number: Annotated[int, Field(ge=0, le=9999)]
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Figures:
    """Everything in report.json. What it holds besides is passed over."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    model: Text
    denoiser: Text
    params: Amounts
    pool: Amounts
    macs: Amounts
    bytes: Amounts
    step_time: Time
    fidelity: Fidelity
    predicted_noise_rel_mse: float
    budget: Mapping[Literal["params", "pool"], Scalar]
    policy: Text
    method: Text
    multiple: Count
    calibration: Mapping[Text, Scalar]
    evaluation: Mapping[Text, Scalar]
    versions: Mapping[Text, Text]
    device: Text
    sites: Annotated[tuple[SiteRow, ...], Field(max_length=100_000)] = ()
    curves: Mapping[Text, Curve] = field(default_factory=dict)
    pictures: Annotated[tuple[Shown, ...], Field(max_length=1000)] = ()


def read_figures(path: Path) -> Figures:
    """Read report.json. Raises SlimdiffError naming the first entry that is not as expected."""
    value: dict[str, Any] = read_json(path, "report")
    try:
        return TypeAdapter(Figures).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SlimdiffError(
            f"'{path}' is not a report at '{place}': {first['msg']}. Run slimdiff compare again."
        ) from None
