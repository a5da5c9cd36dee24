"""Plans of few distinct block shapes: against every partition, and on a model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline

import slimdiff
from slimdiff.families import families
from slimdiff.grid import Grid, blocks, tied
from slimdiff.policies import Group, Option
from slimdiff.policies.measured import measured
from slimdiff.policies.shapes import Block, merged, price_of, sets_of_blocks, shapes_of
from slimdiff.sampling import Sampling


def group(name: str, errors: list[float]) -> Group:
    """Widths 1..n of one parameter each; ``errors`` fall with the width to 0."""
    full = len(errors) + 1
    return Group(
        name,
        tuple(
            Option({name: w}, (float(w),), sum(errors[w - 1 :]), w / full)
            for w in range(1, full + 1)
        ),
    )


@st.composite
def curves(draw, count: int) -> list[Group]:
    steps = st.lists(st.sampled_from([1, 2, 5, 20, 64]), min_size=3, max_size=3)
    return [group(f"g{i}", sorted(draw(steps), reverse=True)) for i in range(count)]


def one_each(count: int) -> list[Block]:
    return [Block("layer", "alike", (i,)) for i in range(count)]


@given(st.data(), st.integers(1, 4), st.floats(0, 40))
def test_sets_split_the_blocks_and_joining_two_is_the_best_there_is(data, most, price):
    groups, alike = data.draw(curves(4)), one_each(4)
    sets = sets_of_blocks(groups, alike, most, price, (10.0,))
    assert sorted(b.groups for s in sets for b in s) == [(0,), (1,), (2,), (3,)]
    assert len(sets) == most

    def loss(parts):
        return sum(
            min(
                sum(groups[i].options[w].error + price * (w + 1) / 10 for i in part)
                for w in range(4)
            )
            for part in parts
        )

    if most == 3:
        pairs = itertools.combinations(range(4), 2)
        naive = [[list(p), *([i] for i in range(4) if i not in p)] for p in pairs]
        found = [[i for b in s for i in b.groups] for s in sets]
        assert loss(found) == pytest.approx(min(map(loss, naive)))


def test_blocks_of_other_shape_or_kind_are_never_joined():
    groups = [group(f"g{i}", [5, 2, 1]) for i in range(4)]
    apart = [
        Block("layer", "small", (0,)),
        Block("layer", "large", (1,)),
        Block("single", "small", (2,)),
        Block("single", "small", (3,)),
    ]
    sets = sets_of_blocks(groups, apart, 1, 1.0, (10.0,))
    assert [[b.groups[0] for b in s] for s in sets] == [[0], [1], [2, 3]]


def test_merged_groups_add_up():
    groups = [group("a", [5, 2, 1]), group("b", [8, 4, 1])]
    (both,) = merged(groups, [one_each(2)])
    assert [o.costs for o in both.options] == [(2.0,), (4.0,), (6.0,), (8.0,)]
    assert [o.error for o in both.options] == [21, 8, 2, 0]
    assert [dict(o.widths) for o in both.options][1] == {"a": 2, "b": 2}


def test_the_price_is_the_rate_of_the_next_cut():
    groups = [group("a", [5, 2, 1]), group("b", [8, 4, 3])]
    whole = [g.options[-1] for g in groups]
    assert price_of(groups, whole, (4.0,)) == pytest.approx(1 / (1 / 4))
    narrowest = [g.options[0] for g in groups]
    assert price_of(groups, narrowest, (4.0,)) == 0


def test_fewer_shapes_never_beat_the_free_plan_where_curves_are_convex():
    groups = [
        group(f"g{i}", e) for i, e in enumerate([[9, 2, 1], [9, 8, 1], [7, 1, 1], [9, 8, 2]])
    ]
    free = measured(groups, (10.0,))
    sets = sets_of_blocks(groups, one_each(4), 2, price_of(groups, free, (10.0,)), (10.0,))
    tidy = measured(merged(groups, sets), (10.0,))
    widths = {n: w for o in tidy for n, w in o.widths.items()}
    assert len(set(widths.values())) <= 2
    assert widths["g1"] == widths["g3"]  # the two whose curves agree
    assert sum(o.error for o in tidy) >= sum(o.error for o in free)


KINDS = {
    "unet": {(".attn1", ".attn2", ".ff")},
    "flux": {(".attn", ".ff", ".ff_context"), ("", ".attn")},
    "wan": {(".attn1", ".attn2", ".ffn")},
}


@pytest.mark.parametrize("name", KINDS)
def test_blocks_are_what_repeats(name):
    family = next(family for family in families() if family.name == name)
    model, _ = family.tiny()
    together = tied(family.sites(model))
    found = blocks(together, Grid(2))
    assert sorted(i for b in found for i in b.groups) == list(range(len(together)))
    assert {b.kind for b in found} == KINDS[name]


@pytest.mark.parametrize("most", [2, 3])
def test_a_plan_has_as_few_shapes_as_asked_and_keeps_the_budget(most):
    pipe = tiny_pipeline()
    stats = slimdiff.calibrate(pipe, ["a", "b"], sampling=Sampling(steps=2, seed=0))
    budget = slimdiff.Budget(pool=0.6)
    free = slimdiff.allocate(stats, budget, multiple=1, shapes=99)
    plan = slimdiff.allocate(stats, budget, multiple=1, shapes=most)
    assert shapes(stats, free) > most >= shapes(stats, plan)
    assert plan.pool_kept <= 0.6
    assert plan.predicted_error >= free.predicted_error


def shapes(stats, plan) -> int:
    together = tied(stats.header.sites)
    taken = [
        Option({s.name: plan.widths[s.name] for s in members}, (), 0.0, 1.0)
        for _, members in together
    ]
    return shapes_of(blocks(together, Grid(plan.multiple)), taken)
