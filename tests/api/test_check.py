"""`join(check=...)`: a program's own node says that it is unfit, and is let in when it is fit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from rallypoint import errors
from tests.api.adapters import together
from tests.waiting import wait_until

OPTIONS: dict[str, Any] = {
    "min_nodes": 1, "max_nodes": 2, "last_call_s": 0.5, "max_restarts": 3, "cooldown_s": 0.2,
}  # fmt: skip
WAIT_S = 30.0


@pytest.mark.sockets
def test_an_unfit_node_stays_out_until_its_check_passes(api: Any, coordinator: str) -> None:
    is_fit, calls = threading.Event(), [0]

    def check() -> str | None:
        calls[0] += 1
        return None if is_fit.is_set() else "GPU 3 fell off"

    with (
        api.join("job", coordinator, node_name="stays", **OPTIONS) as stay,
        api.join("job", coordinator, node_name="odd", check=check, **OPTIONS) as odd,
    ):
        stays_out_until_it_is_fit(stay, odd, is_fit, calls)


def stays_out_until_it_is_fit(
    stay: Any, odd: Any, is_fit: threading.Event, calls: list[int]
) -> None:
    found: list[Any] = []
    waits = threading.Thread(target=lambda: found.append(odd.next_world()))
    world = stay.next_world()
    waits.start()
    joined = threading.Event()
    world.on_change(lambda change: joined.set())
    # It has repeated its check, and the round goes on without it.
    wait_until(lambda: calls[0] >= 2)
    assert (world.size, joined.is_set()) == (1, False)
    is_fit.set()
    assert joined.wait(WAIT_S), "the fit node was not let in"
    again = stay.next_world()
    waits.join(WAIT_S)
    assert (again.size, found[0].size) == (2, 2)
    # Each round is checked anew.
    before = calls[0]
    together(stay.next_world, odd.next_world)
    assert calls[0] > before


@pytest.mark.sockets
def test_a_node_alone_is_let_in_whatever_its_check_says(api: Any, coordinator: str) -> None:
    def raises() -> str:
        raise RuntimeError("no driver")

    with api.join("job", coordinator, check=raises, **OPTIONS) as run:
        assert run.next_world().size == 1


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("command", "size"), [("test -e {}/fit", 1), ("echo no disk; exit 3", 1), ("sleep 60", 1)]
)
def test_a_command_is_a_check(api: Any, coordinator: str, command: str, size: int) -> None:
    options = OPTIONS | {"check_timeout_s": 0.5}
    with api.join("job", coordinator, check=command.format(Path.cwd()), **options) as run:
        assert run.next_world().size == size


@pytest.mark.parametrize("check", [7, ["true"]])
def test_another_thing_is_no_check(api: Any, check: object) -> None:
    with pytest.raises(errors.UsageError, match="check must be a function or a command"):
        api.join("job", "127.0.0.1:1", check=check, max_nodes=1)


def test_a_coroutine_function_is_no_check(api: Any) -> None:
    async def check() -> str:
        return ""

    with pytest.raises(errors.UsageError, match="not a coroutine function"):
        api.join("job", "127.0.0.1:1", check=check, max_nodes=1)
