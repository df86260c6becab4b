"""When a series of measurements counts as flat."""

from __future__ import annotations

import random

import pytest

from tests.soak.__main__ import Verdict, summary
from tests.soak.flat import fitted

AT = [100.0 * number for number in range(80)]


def noisy(seed: int, slope: float = 0.0, noise: float = 1.0) -> list[float]:
    chance = random.Random(seed)
    return [50.0 + slope * at + chance.gauss(0.0, noise) for at in AT]


def test_noise_alone_does_not_grow() -> None:
    wrong = sum(fitted(AT, noisy(seed)).grows_by_more_than(1.0) for seed in range(200))
    assert wrong <= 2


def test_a_slow_leak_in_noise_is_found() -> None:
    """6 more after 6,000 rounds, with noise of 1."""
    missed = sum(not fitted(AT, noisy(seed, 0.001)).grows_by_more_than(1.0) for seed in range(200))
    assert missed == 0


def test_a_warm_up_is_no_growth() -> None:
    values = [40.0 if at < 1_500 else 50.0 for at in AT]
    assert fitted(AT, values).is_flat(0.5)


def test_the_growth_is_in_the_unit_of_the_measurements() -> None:
    line = fitted(AT, [3.0 + 0.01 * at for at in AT])
    assert line.growth == pytest.approx(0.01 * 5_900.0)
    assert line.error == pytest.approx(0.0, abs=1e-9)


def test_a_series_may_be_too_noisy_to_decide() -> None:
    lines = [fitted(AT, noisy(seed, noise=30.0)) for seed in range(200)]
    unclear = [each for each in lines if not each.grows_by_more_than(1.0) and not each.is_flat(1.0)]
    assert len(unclear) > 150


def test_the_last_line_names_what_is_unclear() -> None:
    """It does not fail, so the exit code says nothing of it."""
    series = {"steady": noisy(0), "leaks": noisy(1, 0.001), "jumps": noisy(2, noise=30.0)}
    found = [Verdict(name, fitted(AT, values), 1.0, 1.0) for name, values in series.items()]
    last = "unclear, too noisy to tell, so no failure: jumps"
    assert summary(found) == f"GROWS: leaks; {last}"
    assert summary([found[0], found[2]]) == f"nothing grows for certain; {last}"
    assert summary(found[:1]) == "nothing grows for certain"
