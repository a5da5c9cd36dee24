"""Build the tokenizer: byte-pair merges learned from the labels and tags of the drawings.

CLIP's own vocabulary has 49,408 entries; at width 192 its table alone would be four times our
text encoder. The words of the drawings need about 3,400. The result is an ordinary
`CLIPTokenizer`, saved to WORK/tokenizer.

    python -m training.emoji.tokenizer [--work FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.emoji.common import (
    MAX_TOKENS,
    Drawing,
    base_parser,
    caption,
    load_drawings,
)

ENTRIES = 3400
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
START, END = "<|startoftext|>", "<|endoftext|>"


def corpus(drawings: list[Drawing]) -> Iterator[str]:
    """The text the merges are learned from."""
    for drawing in drawings:
        yield caption(drawing.label, drawing.artist)
        yield from drawing.tags


def learn(texts: Iterator[str], entries: int) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges in CLIP's format, at most `entries` of vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Every byte must be spelled both inside a word and at its end, plus start and end marks.
    reserve = len(alphabet) + 2
    trainer = trainers.BpeTrainer(
        vocab_size=entries - reserve,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], model["merges"]
    for token in [*alphabet, *(letter + "</w>" for letter in alphabet), START, END]:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, merges


def build(vocabulary: dict[str, int], merges: list[list[str]]) -> CLIPTokenizer:
    """The `CLIPTokenizer` of these merges."""
    with TemporaryDirectory() as folder:
        words, pairs = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer(vocab=str(words), merges=str(pairs), model_max_length=MAX_TOKENS)


def main(argv: list[str] | None = None) -> None:
    """Learn the tokenizer and save it."""
    parser = base_parser(__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES, help="size of the vocabulary")
    args = parser.parse_args(argv)
    drawings = load_drawings(args.work)
    tokenizer = build(*learn(corpus(drawings), 700 if args.smoke else args.entries))
    tokenizer.save_pretrained(args.work / "tokenizer")
    lengths = sorted(len(tokenizer(caption(d.label, d.artist)).input_ids) for d in drawings)
    print(
        f"{len(tokenizer)} entries; tokens in a caption: median {lengths[len(lengths) // 2]}, "
        f"99 % {lengths[len(lengths) * 99 // 100]}, longest {lengths[-1]}"
    )


if __name__ == "__main__":
    main()
