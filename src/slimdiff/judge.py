"""The judge of an evaluation: a CLIP model that embeds pictures and prompts.

Its weights are the user's own: a folder, a hub id, or ``emoji-clip``, the small one that ships
with the package and knows the embedded pipeline's drawings only.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from .errors import SlimdiffError

__all__ = ["EMBEDDED", "ImageTower", "TensorFeatures", "judge_place", "load_judge"]

EMBEDDED = "emoji-clip"


class TensorFeatures(nn.Module):
    """A `CLIPModel` whose feature methods return tensors, as torchmetrics' CLIPScore expects.

    Since version 5, transformers returns an output object instead.
    """

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> object:
        """The configuration of the wrapped model."""
        return self.model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Projected image embeddings, not normalised."""
        return self._tensor(self.model.get_image_features(pixel_values=pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Projected text embeddings, not normalised."""
        return self._tensor(
            self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        )

    @staticmethod
    def _tensor(output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else output.pooler_output


class ImageTower(nn.Module):
    """uint8 pictures (B, 3, H, W) -> unit vectors (B, D), in the form FID and KID take."""

    def __init__(self, model: TensorFeatures, processor: CLIPProcessor) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.num_features = int(model.model.config.projection_dim)  # pyright: ignore

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        inputs = self.processor(images=list(pictures.cpu()), return_tensors="pt")
        place = next(self.model.parameters()).device
        features = self.model.get_image_features(inputs["pixel_values"].to(place))
        return nn.functional.normalize(features, dim=-1)


def judge_place(name: str) -> str:
    """Where the judge called ``name`` is: a folder, or a hub id as it stands."""
    return str(files("slimdiff") / "assets" / EMBEDDED) if name == EMBEDDED else name


def load_judge(place: str | Path) -> tuple[TensorFeatures, CLIPProcessor]:
    """Model and processor, in the form torchmetrics' CLIPScore takes from a callable.

    Raises SlimdiffError if ``place`` holds no CLIP model in safetensors.
    """
    try:
        model = CLIPModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True).eval()
        return TensorFeatures(model), CLIPProcessor.from_pretrained(place)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise SlimdiffError(
            f"Judge '{place}' cannot be loaded: {''.join(reason)[:300]}. Expected '{EMBEDDED}', a "
            "folder or a hub id with a CLIP model (safetensors) and its processor."
        ) from None
