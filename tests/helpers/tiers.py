"""Grids of cases of which a tier takes a part."""

from collections.abc import Iterable

import pytest


def a_third(cases: Iterable) -> list:
    """All cases, of which every third is in the default suite and the others are slow; a case is a tuple of parameters."""
    return [pytest.param(*case, marks=pytest.mark.slow if number % 3 else ()) for number, case in enumerate(cases)]


thirds = pytest.mark.parametrize(
    "third", [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 2))]
)
"""`third` is 0 in the slow tier, 1 and 2 in the exhaustive one: for tests that go through a grid by themselves."""
