"""A program's own check: a function or a command, each with a time limit."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable

import pytest

from rallypoint.client.self_check import REASON_MAX, why_unfit


def broken() -> str:
    raise OSError(5, "no driver")


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (lambda: None, ""),
        (lambda: "", ""),
        (lambda: "GPU 3\nfell\x07 off", "GPU 3 fell\\x07 off"),
        (broken, "OSError: [Errno 5] no driver"),
        (lambda: sys.exit("no driver"), "SystemExit: no driver"),
    ],
)
def test_what_a_function_says(check: Callable[[], str | None], why: str) -> None:
    assert asyncio.run(why_unfit(check, 20.0)) == why


def test_a_function_that_hangs_is_a_reason() -> None:
    goes_on = threading.Event()
    try:
        assert asyncio.run(why_unfit(lambda: str(goes_on.wait()), 0.1)) == (
            "it has not ended within 0.1 s"
        )
    finally:
        goes_on.set()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("true", ""),
        ("echo one; echo two; echo; exit 3", "two"),
        ("exit 3", "it exited with code 3"),
        ("nosuchcommand-7", "nosuchcommand-7"),
        ("head -c 100000 /dev/zero | tr '\\0' x; exit 1", "xxx"),
    ],
)
def test_what_a_command_says(command: str, why: str) -> None:
    found = asyncio.run(why_unfit(command, 20.0))
    assert why in found
    assert (found == "") is (why == "")
    assert len(found) <= REASON_MAX


@pytest.mark.processes
def test_a_command_that_hangs_is_ended_with_what_it_has_started() -> None:
    began_s = time.monotonic()
    assert asyncio.run(why_unfit("sleep 600 & sleep 600", 0.2)) == "it has not ended within 0.2 s"
    assert time.monotonic() - began_s < 60.0
