"""Ask the judge what a picture shows, and count how often it names what was asked for.

For a picture P and the captions C_1..C_n of every concept in the same artist's style, the judge
ranks the captions by the cosine of its embeddings of P and C_i. R@k is the share of pictures
whose own caption is among the first k. Chance is k / n, with n about 1,900.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from training.emoji.common import MAX_TOKENS, Drawing, caption

RANKS = (1, 5)


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
    def _tensor(output: Tensor | SimpleNamespace) -> Tensor:
        return output if isinstance(output, Tensor) else output.pooler_output


def load_judge(folder: Path) -> tuple[TensorFeatures, CLIPProcessor]:
    """Model and processor, in the form torchmetrics' CLIPScore takes from a callable."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    return TensorFeatures(model), CLIPProcessor.from_pretrained(folder)


class Judge:
    """Recall of captions from pictures."""

    def __init__(self, folder: Path, drawings: list[Drawing]) -> None:
        self.model, self.processor = load_judge(folder)
        self.labels = sorted({drawing.label for drawing in drawings})
        self.place = {label: i for i, label in enumerate(self.labels)}
        self.embedded: dict[str, Tensor] = {}

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors of captions."""
        ids = self.processor.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        parts = zip(ids.input_ids.split(256), ids.attention_mask.split(256), strict=True)
        features = torch.cat([self.model.get_text_features(*part) for part in parts])
        return nn.functional.normalize(features, dim=-1)

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Unit vectors of uint8 pictures, N x 3 x 64 x 64."""
        features = []
        for part in pictures.split(256):
            inputs = self.processor(images=list(part), return_tensors="pt")
            features.append(self.model.get_image_features(inputs["pixel_values"]))
        return nn.functional.normalize(torch.cat(features), dim=-1)

    def ranks(self, pictures: Tensor, asked: list[Drawing]) -> Tensor:
        """Place of each picture's own label among all labels, 0 being first."""
        embedded = self.embed_pictures(pictures)
        places = []
        for picture, drawing in zip(embedded, asked, strict=True):
            if drawing.artist not in self.embedded:
                texts = [caption(label, drawing.artist) for label in self.labels]
                self.embedded[drawing.artist] = self.embed_texts(texts)
            scores = self.embedded[drawing.artist] @ picture
            places.append((scores > scores[self.place[drawing.label]]).sum())
        return torch.stack(places)

    def recall(self, pictures: Tensor, asked: list[Drawing]) -> dict[str, float]:
        """R@1, R@5 and how many pictures that is."""
        if not asked:
            return {"pictures": 0}
        places = self.ranks(pictures, asked)
        shares = {f"R@{k}": (places < k).float().mean().item() for k in RANKS}
        return {"pictures": len(asked), **shares}
