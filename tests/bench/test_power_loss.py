"""The loss of a host's power, small, and what is refused. Hosts are network namespaces."""

from __future__ import annotations

import pytest

from rallypoint.bench import driver, hosts, power_loss
from rallypoint.bench.processes import BenchError


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(BenchError, match="cannot: network namespaces need root") as raised:
        power_loss.measure(driver.Plan(driver.NOWHERE), 8)
    assert "as root" in raised.value.hint


@pytest.mark.parametrize("nodes", [2, 65])
def test_the_limits_of_the_number_of_hosts(monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    monkeypatch.setattr(hosts, "why_not", lambda: "")
    with pytest.raises(BenchError, match="from 3 to 64 hosts"):
        power_loss.check(nodes)


@pytest.mark.processes
@pytest.mark.verify
@pytest.mark.parametrize("workers", ["fail", "hang"])
def test_a_host_without_power_is_lost_and_the_others_go_on(workers: str) -> None:
    if problem := hosts.why_not():
        pytest.skip(problem)
    lost_s, formed_s = power_loss._once(driver.Plan(driver.NOWHERE), 4, workers)
    assert lost_s > 0
    assert formed_s > 0
