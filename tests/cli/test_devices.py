"""How many workers, where `--nproc-per-node` leaves it to us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rallypoint.cli import devices
from rallypoint.errors import UsageError


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A machine with three GPUs."""
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    return tmp_path


def _count(wanted: int | str, driver: Path, **environ: str) -> tuple[int, list[str]]:
    notes: list[str] = []
    count = devices.count_workers(wanted, environ=environ, note=notes.append, driver=driver)
    return count, notes


def test_a_number_is_that_number(driver: Path) -> None:
    assert _count(7, driver) == (7, [])


def test_all_gpus_of_the_driver_count_unless_some_are_chosen(driver: Path) -> None:
    assert _count("gpu", driver) == (3, [])
    assert _count("gpu", driver, CUDA_VISIBLE_DEVICES="0,2") == (2, [])


def test_auto_takes_the_gpus_and_says_so(driver: Path) -> None:
    assert _count("auto", driver) == (3, ["--nproc-per-node auto: 3 GPUs"])


@pytest.mark.parametrize("environ", [{"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}])
def test_auto_without_a_gpu_is_one_and_says_so(driver: Path, environ: dict[str, str]) -> None:
    assert _count("auto", driver, **environ) == (1, ["--nproc-per-node auto: no GPU, 1"])
    assert _count("auto", driver / "none") == (1, ["--nproc-per-node auto: no GPU, 1"])


def test_a_missing_gpu_is_an_error(driver: Path) -> None:
    with pytest.raises(UsageError, match="no GPU here"):
        _count("gpu", driver / "none")


def test_the_cpus_are_those_this_process_may_use(driver: Path) -> None:
    assert _count("cpu", driver) == (len(os.sched_getaffinity(0)), [])
