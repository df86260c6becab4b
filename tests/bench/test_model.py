"""The cost model finds the line in the data, and names quantities that grow too fast."""

from __future__ import annotations

import pytest

from rallypoint.bench import driver, model

SIZES = (128, 256, 512, 1_024)


def cost(of, name: str = "bytes", sizes: tuple[int, ...] = SIZES) -> model.Cost:
    return model.fit(name, "per round", "", {n: of(n) for n in sizes})


def test_fixed_costs_and_costs_per_node() -> None:
    found = cost(lambda n: 40 + 3 * n)
    assert found.fixed == pytest.approx(40)
    assert found.per_node == pytest.approx(3)
    assert found.predict(10_000) == pytest.approx(30_040)
    assert found.predict(100_000) is None, "a hundred times what was measured"


def test_fixed_costs_are_predicted_to_stay_fixed() -> None:
    assert cost(lambda n: 5.0).predict(10_000) == pytest.approx(5)


def test_no_prediction_per_node_is_below_the_largest_size() -> None:
    """At the largest size caches are full that are not full at small sizes."""
    sizes = (*SIZES, 2_048, 4_096, 9_000)
    found = cost(lambda n: 1.4 * n if n == 9_000 else 1.0 * n, sizes=sizes)
    assert found.fitted(10_000) < 13_000
    assert found.predict(10_000) == pytest.approx(14_000, rel=0.01)
    said, last, _ = model.remarks([found])
    assert said.startswith("nothing grows faster")
    assert last == "but from 4,096 to 9,000 nodes these do: bytes per round (1.43)"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent(power: float) -> None:
    assert cost(lambda n: 7 * n**power).exponent == pytest.approx(power)


def test_costs_that_do_not_depend_on_the_nodes() -> None:
    found = cost(lambda n: 5.0)
    assert found.fixed == pytest.approx(5)
    assert found.per_node == pytest.approx(0)


def test_nothing_is_ever_negative() -> None:
    steep = cost(lambda n: n * n / 1_000)
    assert steep.fixed == 0
    assert steep.per_node > 0
    falling = cost(lambda n: 1_000 - n / 2)
    assert falling.per_node == 0
    assert falling.fixed > 0


def test_small_sizes_weigh_as_much_as_large_ones() -> None:
    """Least squares of the values themselves would let the largest size decide alone."""
    found = cost(lambda n: 100.0 if n == 128 else 1.0 * n)
    assert abs(found.fitted(128) / 100 - 1) < 0.2


def test_growth_that_is_too_fast_is_named() -> None:
    square, line = cost(lambda n: float(n * n)), cost(lambda n: float(n), "messages")
    said, warning = model.remarks([square, line])
    assert said == "these grow faster than N to the 1.1: bytes per round (2.00)"
    assert "were not measured" in warning
    assert model.remarks([line])[0] == "nothing grows faster than N to the 1.1"
    two = cost(lambda n: float(n), sizes=(8, 64))
    assert "two sizes" in model.remarks([two])[0]


def test_more_than_one_core_gives_a_remark() -> None:
    sizes = (128, 512, 2_048, 9_000)
    found = model.fit("CPU", model.CPU_PER_S, "", {n: 0.04 * n for n in sizes})
    assert model.remarks([found])[-1].startswith("30,000 and 100,000 idle nodes would need more")


def test_zeros_are_shown_and_not_fitted() -> None:
    found = cost(lambda n: 0.0 if n == 128 else 3.0 * n)
    assert found.measured[128] == 0.0
    assert found.per_node == pytest.approx(3)


def test_values_that_cannot_be_fitted_are_an_error() -> None:
    with pytest.raises(
        driver.BenchError, match=r"bytes .* cannot be fitted: 0 at 2 nodes"
    ) as raised:
        cost(lambda n: 0.0 if n == 2 else 1.0, sizes=(2, 3))
    assert "--seconds" in raised.value.hint


def test_every_prediction_is_marked() -> None:
    body = model.as_json({}, [cost(lambda n: 2.0 * n)])
    [found] = body["model"]
    assert [each["nodes"] for each in found["measured"]] == list(SIZES)
    assert [each["nodes"] for each in found["predicted"]] == [10_000]
    assert all(each["is_prediction"] for each in found["predicted"])
    assert found["predicted"][0]["value"] == pytest.approx(20_000)
