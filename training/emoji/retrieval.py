"""Ask the judge what a picture shows, and count how often it names what was asked for.

For a picture P and the captions C_1..C_n of every concept in the same artist's style, the judge
ranks the captions by the cosine of its embeddings of P and C_i. R@k is the share of pictures
whose own caption is among the first k. Chance is k / n, with n about 1,900.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from slimdiff.judge import load_judge
from training.emoji.common import MAX_TOKENS, Drawing, caption

RANKS = (1, 5)


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
