"""Policies against brute force over every choice of options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdiff.policies import POLICIES, Group, Option
from slimdiff.policies.measured import measured
from slimdiff.policies.uniform import uniform

drops = st.lists(st.sampled_from([0, 1, 2, 5, 20, 64, 200]), min_size=1, max_size=4)


def group(name: str, unit: int, costs: Sequence[int]) -> Group:
    """Widths 1..n of ``unit`` parameters; ``costs[i]`` is what going below width n - i costs."""
    full = len(costs) + 1
    errors = [sum(costs[: full - width]) / 64 for width in range(1, full + 1)]
    return Group(
        name,
        tuple(
            Option({name: width}, (unit * width,), error, width / full)
            for width, error in enumerate(errors, 1)
        ),
    )


@st.composite
def groups(draw, convex: bool = False, unit: int | None = None):
    """One to four groups with rising (and, if convex, ever more steeply rising) errors."""
    found = []
    for name in draw(st.permutations("abcd"))[: draw(st.integers(1, 4))]:
        costs = draw(drops)
        size = draw(st.integers(1, 9)) if unit is None else unit
        found.append(group(name, size, sorted(costs) if convex else costs))
    return found


def parameters(chosen: Sequence[Option]) -> int:
    return sum(option.costs[0] for option in chosen)


def error(chosen: Sequence[Option]) -> float:
    return sum(option.error for option in chosen)


def budget(draw, found: Sequence[Group]) -> int:
    """A ceiling that can be reached."""
    least = sum(g.options[0].costs[0] for g in found)
    return draw(st.integers(least, sum(g.options[-1].costs[0] for g in found)), label="ceiling")


def optimum(found: Sequence[Group], ceiling: int) -> float:
    choices = itertools.product(*(g.options for g in found))
    return min(error(chosen) for chosen in choices if parameters(chosen) <= ceiling)


@given(groups(), st.data(), st.sampled_from(sorted(POLICIES)))
def test_no_policy_exceeds_a_ceiling_that_can_be_reached(found, data, policy):
    ceiling = budget(data.draw, found)
    chosen = POLICIES[policy](found, (ceiling,))
    assert parameters(chosen) <= ceiling
    assert all(option in g.options for option, g in zip(chosen, found, strict=True))


@given(groups(), st.integers(0, 50), st.sampled_from(sorted(POLICIES)))
def test_every_policy_keeps_all_where_all_fits(found, room, policy):
    chosen = POLICIES[policy](found, (sum(g.options[-1].costs[0] for g in found) + room,))
    assert chosen == [g.options[-1] for g in found]


@given(groups(), st.data())
def test_measured_is_never_worse_than_uniform(found, data):
    ceiling = budget(data.draw, found)
    assert error(measured(found, (ceiling,))) <= error(uniform(found, (ceiling,))) + 1e-12


def test_measured_is_not_worse_than_uniform_where_the_hull_hides_the_better_width():
    found = [group("a", 4, [64]), group("b", 8, [20, 200, 0]), group("c", 3, [2, 200])]
    assert error(uniform(found, (36,))) == pytest.approx(1.34375)
    assert error(measured(found, (36,))) <= 1.34375


@given(groups(convex=True, unit=3), st.data())
def test_measured_is_optimal_for_convex_curves_of_equal_steps(found, data):
    ceiling = budget(data.draw, found)
    assert error(measured(found, (ceiling,))) == pytest.approx(optimum(found, ceiling), abs=1e-12)


@given(groups(), st.data())
def test_measured_is_within_one_move_of_the_optimum(found, data):
    ceiling = budget(data.draw, found)
    move = max(g.options[0].error for g in found)
    assert error(measured(found, (ceiling,))) <= optimum(found, ceiling) + move + 1e-12


@given(groups(convex=True), st.data())
def test_measured_is_within_one_step_of_the_optimum_for_convex_curves(found, data):
    ceiling = budget(data.draw, found)
    step = max(a.error - b.error for g in found for a, b in itertools.pairwise(g.options))
    assert error(measured(found, (ceiling,))) <= optimum(found, ceiling) + step + 1e-12


@given(groups(), st.data())
def test_no_single_upgrade_that_would_help_is_left(found, data):
    ceiling = budget(data.draw, found)
    chosen = measured(found, (ceiling,))
    slack = ceiling - parameters(chosen)
    for option, g in zip(chosen, found, strict=True):
        for other in g.options:
            assert other.error >= option.error or other.costs[0] > option.costs[0] + slack


@given(groups(), st.data(), st.sampled_from(sorted(POLICIES)))
def test_the_order_of_the_groups_does_not_matter(found, data, policy):
    ceiling = budget(data.draw, found)
    shuffled = data.draw(st.permutations(found))
    chosen = dict(zip((g.name for g in found), POLICIES[policy](found, (ceiling,)), strict=True))
    again = dict(
        zip((g.name for g in shuffled), POLICIES[policy](shuffled, (ceiling,)), strict=True)
    )
    assert chosen == again


def test_ties_are_broken_by_name():
    twins = [group(name, 5, [1, 2]) for name in "ba"]
    first, second = measured(twins, (25,))
    assert (second.widths, first.widths) == ({"a": 2}, {"b": 3})


def test_ties_for_what_is_left_over_are_broken_by_name():
    found = [group("b", 5, [1]), group("a", 5, [1]), group("c", 50, [64])]
    assert [option.share for option in measured(found, (65,))] == [0.5, 1.0, 0.5]


@given(groups(), st.data())
def test_uniform_keeps_the_largest_common_share_that_fits(found, data):
    ceiling = budget(data.draw, found)

    def rounded_down(share: Fraction) -> list[Option]:
        fulls = [len(g.options) for g in found]
        widths = [max(1, math.floor(share * full)) for full in fulls]
        return [g.options[width - 1] for g, width in zip(found, widths, strict=True)]

    # 60 is a multiple of every full width, so these are all the shares that differ.
    fitting = [s for s in range(61) if parameters(rounded_down(Fraction(s, 60))) <= ceiling]
    assert uniform(found, (ceiling,)) == rounded_down(Fraction(fitting[-1], 60))


@given(groups())
def test_a_ceiling_out_of_reach_gives_the_narrowest(found):
    ceiling = sum(g.options[0].costs[0] for g in found) - 1
    narrowest = [g.options[0] for g in found]
    assert uniform(found, (ceiling,)) == narrowest
    assert measured(found, (ceiling,)) == narrowest


@st.composite
def groups_of_two_costs(draw):
    """Groups whose second cost rises with the width too, but not in proportion to the first."""
    found = []
    for g in draw(groups()):
        steps = draw(st.lists(st.integers(0, 9), min_size=3, max_size=3))
        seconds = list(itertools.accumulate([1 + steps[0]] + steps * len(g.options)))
        pairs = zip(g.options, seconds, strict=False)
        options = (replace(o, costs=(*o.costs, seconds)) for o, seconds in pairs)
        found.append(Group(g.name, tuple(options)))
    return found


def ceilings(draw, found: Sequence[Group]) -> tuple[int, int]:
    """Two ceilings that can be reached together: the narrowest widths keep both."""
    least, most = ([sum(g.options[i].costs[k] for g in found) for k in (0, 1)] for i in (0, -1))
    return tuple(draw(st.integers(a, b)) for a, b in zip(least, most, strict=True))


@given(groups_of_two_costs(), st.data(), st.sampled_from(sorted(POLICIES)))
def test_no_policy_exceeds_either_of_two_ceilings(found, data, policy):
    both = ceilings(data.draw, found)
    chosen = POLICIES[policy](found, both)
    assert all(sum(o.costs[k] for o in chosen) <= both[k] for k in (0, 1))


@given(groups_of_two_costs(), st.data())
def test_under_two_ceilings_measured_is_within_one_move_of_the_optimum(found, data):
    both = ceilings(data.draw, found)
    choices = itertools.product(*(g.options for g in found))
    fitting = [c for c in choices if all(sum(o.costs[k] for o in c) <= both[k] for k in (0, 1))]
    best = min(error(chosen) for chosen in fitting)
    # Each ceiling can leave one move half used.
    move = 2 * max(g.options[0].error for g in found)
    assert error(measured(found, both)) <= best + move + 1e-12
    assert error(measured(found, both)) <= error(uniform(found, both)) + 1e-12


@given(groups(), st.data())
def test_the_same_ceiling_twice_changes_nothing(found, data):
    ceiling = budget(data.draw, found)
    twice = [
        Group(g.name, tuple(replace(o, costs=(*o.costs, *o.costs)) for o in g.options))
        for g in found
    ]
    widths = [dict(o.widths) for o in measured(twice, (ceiling, ceiling))]
    assert widths == [dict(o.widths) for o in measured(found, (ceiling,))]
