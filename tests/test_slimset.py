"""SlimSet: greedy against naive twins and brute force, the command, the shipped pool."""

from __future__ import annotations

import math
import runpy
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import normal, seeds
from hypothesis import given
from hypothesis import strategies as st
from test_cli import refused, run
from tiny import prompt_file, tiny_folder, tiny_pipeline
from torch.nn.functional import normalize
from transformers import T5Config, T5EncoderModel

from slimdiff import coverage as coverage_module
from slimdiff.cli.calibrating import SHIPPED_POOL, pool_of
from slimdiff.coverage import METHODS, coverage, facility_location, k_center
from slimdiff.errors import SlimdiffError
from slimdiff.prompts import dataset_captions, read_prompts, split
from slimdiff.slimset import candidates, embed_prompts, select_prompts

methods = pytest.mark.parametrize("choose", METHODS.values(), ids=METHODS.keys())


def rows(seed, count, width=4):
    """Unit rows."""
    return normalize(normal(seed, count, width), dim=1)


def naive_coverage(e, chosen):
    return sum(max(float(x @ e[j]) for j in chosen) for x in e) / len(e)


def naive_facility_location(e, count):
    chosen = []
    while len(chosen) < count:
        free = [j for j in range(len(e)) if j not in chosen]
        values = [naive_coverage(e, [*chosen, j]) for j in free]
        chosen.append(
            next(j for j, v in zip(free, values, strict=True) if v > max(values) - 1e-12)
        )
    return chosen


def naive_k_center(e, count):
    likeness = [float(sum(x @ y for y in e)) for x in e]
    chosen = [likeness.index(max(likeness))]
    while len(chosen) < count:
        free = [j for j in range(len(e)) if j not in chosen]
        far = [min(float((e[j] - e[i]).norm()) for i in chosen) for j in free]
        chosen.append(free[far.index(max(far))])
    return chosen


@given(seeds, st.integers(1, 14))
def test_facility_location_is_the_naive_greedy(seed, count):
    e = rows(seed, 14)
    assert facility_location(e, count).order.tolist() == naive_facility_location(e, count)


@given(seeds, st.integers(1, 14))
def test_k_center_is_the_naive_greedy(seed, count):
    e = rows(seed, 14)
    assert k_center(e, count).order.tolist() == naive_k_center(e, count)


@given(seeds)
def test_lazy_gains_in_small_blocks_choose_the_same(seed):
    e = rows(seed, 60)
    whole = facility_location(e, 40).order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage_module, "_BLOCK", 3)
        assert facility_location(e, 40).order.equal(whole)


@given(seeds, st.integers(1, 4))
def test_facility_location_is_near_the_best_set(seed, count):
    e = rows(seed, 9, 3)
    best = max(naive_coverage(e, s) for s in combinations(range(9), count))
    found = float(facility_location(e, count).coverage[-1])
    assert best + 1e-12 >= found
    assert 1 + found >= (1 - 1 / math.e) * (1 + best) - 1e-12


@given(seeds, st.integers(1, 4))
def test_k_center_is_at_most_twice_the_least_radius(seed, count):
    e = rows(seed, 9, 3)
    distance = (e[:, None] - e[None]).norm(dim=-1)

    def radius(chosen):
        return float(distance[:, list(chosen)].amin(1).max())

    least = min(radius(s) for s in combinations(range(9), count))
    assert radius(k_center(e, count).order.tolist()) <= 2 * least + 1e-12


@methods
@given(seed=seeds)
def test_coverage_is_right_rises_and_ends_at_one(choose, seed):
    e = rows(seed, 20)
    cover = choose(e, 20)
    assert sorted(cover.order.tolist()) == list(range(20))
    assert (cover.coverage.diff() >= 0).all()
    assert float(cover.coverage[-1]) == pytest.approx(1, abs=1e-12)
    for size in (1, 7, 20):
        chosen = cover.order[:size]
        assert float(cover.coverage[size - 1]) == pytest.approx(naive_coverage(e, chosen))
        assert coverage(e, chosen) == pytest.approx(naive_coverage(e, chosen))


@methods
@given(seed=seeds)
def test_fewer_are_a_prefix_and_twice_is_the_same(choose, seed):
    e = rows(seed, 30)
    long, short = choose(e, 20), choose(e, 8)
    assert short.order.equal(long.order[:8])
    assert short.coverage.equal(long.coverage[:8])
    assert choose(e.clone(), 20).order.equal(long.order)


@methods
@given(seed=seeds)
def test_duplicates_come_last_lowest_index_first(choose, seed):
    e = rows(seed, 12)
    twice = torch.cat([e, e])
    order = choose(twice, 24).order.tolist()
    assert sorted(order[:12]) == list(range(12))
    assert order[12:] == list(range(12, 24))


@methods
def test_equal_rows_and_impossible_counts(choose):
    assert choose(rows(0, 1).expand(5, 4), 5).order.tolist() == [0, 1, 2, 3, 4]
    for count in (0, 6):
        with pytest.raises(SlimdiffError, match=f"{count} prompts of 5 were asked for; expected"):
            choose(rows(0, 5), count)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_embeddings_are_the_pooled_output_and_do_not_depend_on_the_batch(pipe):
    texts = [f"thing {'x' * i}" for i in range(7)]
    e = embed_prompts(pipe, texts)
    assert e.dtype == torch.float64
    assert e.norm(dim=1).sub(1).abs().max() < 1e-12
    ids = pipe.tokenizer(texts[2], return_tensors="pt").input_ids
    with torch.no_grad():
        alone = pipe.text_encoder(ids).pooler_output.double()
    assert torch.allclose(e[2:3], normalize(alone), atol=1e-5)
    assert torch.allclose(embed_prompts(pipe, texts, batch_size=2), e, atol=1e-5)


def test_encoders_without_a_pooled_output_give_the_mean_over_tokens(pipe):
    torch.manual_seed(0)
    t5 = T5EncoderModel(
        T5Config(vocab_size=200, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).eval()
    both = SimpleNamespace(
        tokenizer=pipe.tokenizer,
        text_encoder=pipe.text_encoder,
        tokenizer_2=pipe.tokenizer,
        text_encoder_2=t5,
    )
    texts = ["ab", "a longer text"]
    e = embed_prompts(both, texts)
    assert e.shape == (2, 12 + 8)
    ids = pipe.tokenizer(texts[0], return_tensors="pt").input_ids
    with torch.no_grad():
        mean = t5(ids).last_hidden_state[0].mean(0).double()
    half = math.sqrt(0.5)
    assert torch.allclose(e[0, 12:], normalize(mean, dim=0) * half, atol=1e-5)
    assert torch.allclose(e[:, :12], embed_prompts(pipe, texts) * half, atol=1e-5)


def test_pipelines_without_text_or_with_broken_encoders():
    with pytest.raises(SlimdiffError, match="SimpleNamespace has no text encoder .*expected a"):
        embed_prompts(SimpleNamespace(), ["a"])
    broken = tiny_pipeline()
    for parameter in broken.text_encoder.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.raises(SlimdiffError, match="not finite in torch.float32; .* --dtype"):
        embed_prompts(broken, ["a"])


def test_held_out_prompts_and_their_copies_are_never_chosen(pipe):
    pool = [f"thing {i}" for i in range(30)]
    pool[3] = pool[29]
    pool[5] = pool[4]
    held_out = {text for _, text in split(pool, 1)[1]}
    assert len(candidates(pool)) == 22 - 2
    for method in METHODS:
        found = select_prompts(pipe, pool, 20, method=method)
        assert not held_out & set(found.prompts)
        assert len(set(found.prompts)) == 20
        assert found.coverage[-1] == pytest.approx(1)
        assert found.first == pytest.approx(1)
        assert found.random == pytest.approx(1)
    with pytest.raises(SlimdiffError, match="--num-prompts is 21; expected 1 to 20, .*pool's 30"):
        select_prompts(pipe, pool, 21)
    with pytest.raises(SlimdiffError, match="Unknown --method 'best'; expected facility or k-cen"):
        select_prompts(pipe, pool, 3, method="best")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("slimset")
    tiny_folder(root / "model")
    prompt_file(root / "pool.txt", 40)
    return root


CPU = ["--device", "cpu"]


@pytest.mark.parametrize("method", METHODS)
def test_the_command_writes_the_chosen_prompts_and_shows_coverage(place, pipe, method):
    made = run(
        "prompts", "model", "-o", f"{method}.txt", "--num-prompts", "6", "--pool", "pool.txt",
        "--method", method, "--held-out", f"{method}-held.txt", *CPU, cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    pool = read_prompts(place / "pool.txt")
    found = select_prompts(pipe, pool, 6, method=method)
    assert (place / f"{method}.txt").read_text() == "".join(f"{p}\n" for p in found.prompts)
    assert read_prompts(place / f"{method}-held.txt") == pool[-8:]
    shown = made.stdout
    for name, value in (
        ("chosen", found.coverage[-1]),
        ("first", found.first),
        ("random", found.random),
    ):
        assert f"{name} 6" in shown
        assert f"{value:.4f}" in shown
    assert "Choosing 6 of 32 prompts; 8 are held out" in made.stderr


def test_the_command_takes_captions_of_a_dataset(place, monkeypatch):
    texts = [f"caption {i}" for i in range(20)]
    seen = fake_datasets(monkeypatch, [{"caption": t} for t in texts])
    made = run(
        "prompts", "model", "-o", "d.txt", "--num-prompts", "3", "--dataset", "some/set",
        "--split", "val", "--limit", "15", *CPU, cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert seen == {"name": "some/set", "split": "val", "streaming": True}
    assert len(set(read_prompts(place / "d.txt")) & set(texts[:7])) == 3


def test_the_command_refuses_by_text(place, monkeypatch):
    def command(*more):
        return run("prompts", "model", "-o", "bad.txt", *more, *CPU, cwd=place)

    refused(
        command("--pool", "pool.txt", "--dataset", "x"), "Both --pool 'pool.txt' and --dataset"
    )
    refused(command("--pool", "lost.txt"), "No prompt file at 'lost.txt'")
    refused(command("--pool", "pool.txt"), "--num-prompts is 256; expected 1 to 32, .*larger pool")
    refused(command("--pool", "pool.txt", "--num-prompts", "0"), "--num-prompts is 0; expected 1")
    prompt_file(place / "few.txt", 5)
    refused(command("--pool", "few.txt", "--num-prompts", "2"), "has 5 prompts, but 8 are held")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(
        command("--dataset", "some/set"),
        r"Dataset 'some/set' needs .*not installed. Run: pip install 'slimdiff\[datasets\]', or",
    )
    (place / "there.txt").write_text("mine\n")
    for option in (["-o", "there.txt"], ["--held-out", "there.txt"]):
        refused(command("--pool", "pool.txt", *option), "'there.txt' already exists.*--force")
    assert (place / "there.txt").read_text() == "mine\n"
    assert not (place / "bad.txt").exists()


def test_the_command_has_an_example(place):
    shown = run("prompts", "--help", cwd=place)
    assert shown.returncode == 0
    assert "Example: slimdiff prompts" in shown.stdout


class Stream(list):
    """Rows as the library streams them."""

    def take(self, count):
        return Stream(self[:count])


def fake_datasets(monkeypatch, answer):
    """Put a module ``datasets`` in place that hands out ``answer``, or raises it."""
    module, seen = ModuleType("datasets"), {}

    def load_dataset(name, **options):
        seen.update(name=name, **options)
        if isinstance(answer, Exception):
            raise answer
        return Stream(answer)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return seen


def test_captions_are_cleaned(monkeypatch):
    values = ["a  cat\non a mat ", "", None, "# no", ["first", "second"], [""], "first", "last"]
    fake_datasets(monkeypatch, [{"text": value} for value in values])
    assert dataset_captions("s", "text", "train", 100) == ["a cat on a mat", "first", "last"]
    assert dataset_captions("s", "text", "train", 1) == ["a cat on a mat"]


def test_unreadable_datasets(monkeypatch):
    for answer, text in (
        ([{"image": 1, "label": 2}], "Dataset 's' has no column 'caption'; it has image, label. "),
        ([{"caption": 3}], "Column 'caption' of dataset 's' holds int; expected text.*--column"),
        (
            ConnectionError("no route\nat all"),
            r"Dataset 's' \(split 'train'\) cannot .*no route\.",
        ),
    ):
        fake_datasets(monkeypatch, answer)
        with pytest.raises(SlimdiffError, match=text):
            dataset_captions("s", "caption", "train", 5)


def test_the_shipped_pool_serves_models_that_bring_none():
    prompts = pool_of("some/model", None)
    assert prompts == SHIPPED_POOL.read_text(encoding="utf-8").splitlines()
    assert len(prompts) >= 1400
    assert len({prompt.casefold() for prompt in prompts}) == len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    assert min(lengths) >= 3
    assert max(lengths) <= 300
    assert sum(length < 25 for length in lengths) > 50
    assert sum(length > 150 for length in lengths) > 50
    assert len({prompt.split()[-1] for prompt in prompts}) > 500


def test_the_shipped_pool_is_what_its_script_makes():
    script = Path(__file__).parents[1] / "benchmarks/prompts/make_pool.py"
    if not script.is_file():
        pytest.skip("the banks are not part of the source distribution")
    made = runpy.run_path(str(script))["pool"]()
    assert made == read_prompts(SHIPPED_POOL)


def test_any_tenth_of_the_shipped_pool_is_a_fair_sample():
    prompts = read_prompts(SHIPPED_POOL)
    tenth = len(prompts) // 10
    for part in (prompts[:tenth], prompts[-tenth:]):
        sentences = sum(prompt.endswith(".") for prompt in part) / len(part)
        assert sentences == pytest.approx(
            sum(prompt.endswith(".") for prompt in prompts) / len(prompts), abs=0.12
        )
