"""The tables of docs/scale.md can be measured again."""

from __future__ import annotations

import pytest

scale = pytest.importorskip("benchmarks.scale", reason="the source distribution has no benchmarks")


@pytest.mark.processes
@pytest.mark.verify
@pytest.mark.timeout(400)  # It may wait for half a minute for a quiet machine.
def test_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale.store, "CALLS_IN_ALL", 200)
    monkeypatch.setattr(scale.idle, "STEADY_S", 0.0)
    text = scale.tables((4, 8), 1, 3, seconds=2.0)
    assert "| meet: warm | ms |" in text
    assert "| idle: bytes | per node and s |" in text
    assert "| one of 3 runs |" in text
    assert "100,000 (predicted)" in text
