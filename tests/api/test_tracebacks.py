"""What a program's user sees of an expected error: whose fault it is, and not how it came about."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import rallypoint
from rallypoint import aio
from tests.ports import free_port

pytestmark = pytest.mark.processes

PACKAGE = str(Path(rallypoint.__file__).parent)
INSIDE_MAX = 1
"""A method of the API: its line tells which call it was."""


def two_sizes(folder: Path) -> None:
    rallypoint.join("job", "http://127.0.0.1:1", min_nodes=3, max_nodes=2)


def nobody_there(folder: Path) -> None:
    rallypoint.join("job", f"http://127.0.0.1:{free_port()}", connect_timeout_s=0.2)


def no_such_file(folder: Path) -> None:
    rallypoint.join("job", "127.0.0.1:1", token_file=str(folder / "none"))


def no_folder(folder: Path) -> None:
    (folder / "file").touch()
    rallypoint.join("job", f"file://{folder / 'file' / 'x'}", connect_timeout_s=0.2)


def no_etcd(folder: Path) -> None:
    rallypoint.join("job", f"etcd://127.0.0.1:{free_port()}/x", connect_timeout_s=2.0)


def too_few(folder: Path) -> None:
    port = free_port()
    with rallypoint.join("job", f"127.0.0.1:{port}", min_nodes=2, join_timeout_s=0.2) as run:
        run.next_world()


def over(folder: Path) -> None:
    with rallypoint.join("job", max_nodes=1, last_call_s=0.01) as run:
        world = run.next_world()
        assert world is not None
        run.close("done")
        world.store.set("a", "b")


def no_key(folder: Path) -> None:
    with rallypoint.join("job", max_nodes=1, last_call_s=0.01) as run:
        world = run.next_world()
        assert world is not None
        world.store.wait(["none"], 0.1)


def nobody_there_for_async(folder: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    asyncio.run(aio.join("job", endpoint, connect_timeout_s=0.2))


def too_few_for_async(folder: Path) -> None:
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with await aio.join("job", endpoint, min_nodes=2, join_timeout_s=0.2) as run:
            await run.next_world()

    asyncio.run(main())


async def alone(body: Callable[[aio.Run, aio.World], Awaitable[object]]) -> None:
    async with await aio.join("job", max_nodes=1, last_call_s=0.01) as run:
        world = await run.next_world()
        assert world is not None
        await body(run, world)


def no_key_for_async(folder: Path) -> None:
    async def body(run: aio.Run, world: aio.World) -> None:
        await world.store.wait(["none"], 0.1)

    asyncio.run(alone(body))


def over_for_async(folder: Path) -> None:
    async def body(run: aio.Run, world: aio.World) -> None:
        await run.close("done")
        await world.barrier("late")

    asyncio.run(alone(body))


def no_world_for_async(folder: Path) -> None:
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with await aio.join("job", endpoint, min_nodes=2, join_timeout_s=0.2) as run:
            async for _ in run.worlds():
                pass

    asyncio.run(main())


ALL = [
    *(two_sizes, nobody_there, no_such_file, no_folder, no_etcd, too_few, over, no_key),
    *(nobody_there_for_async, too_few_for_async, no_key_for_async, over_for_async),
    no_world_for_async,
]


@pytest.mark.parametrize("program", ALL)
def test_a_traceback_shows_the_call_and_what_to_do(
    program: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(rallypoint.RallypointError) as caught:
        program(tmp_path)
    error = caught.value
    frames = [each.filename for each in traceback.extract_tb(error.__traceback__)]
    assert program.__code__.co_filename in frames
    # In a program with torch, a store is of torch's class, whose methods have one line more.
    inside_max = INSIDE_MAX + ("torch.distributed" in sys.modules)
    assert len([each for each in frames if each.startswith(PACKAGE)]) <= inside_max, frames
    assert not [each for each in frames if "concurrent" in each]
    text = "".join(traceback.format_exception(error))
    assert "During handling" not in text
    assert text.endswith(f"{error}\n")
    assert error.hint or isinstance(error, rallypoint.UsageError)
    # The system's error stays, for its number, without the frames of those who met it.
    if error.__cause__ is not None:
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno
        assert error.__cause__.__traceback__ is None


def test_the_development_mode_of_python_keeps_the_frames(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import rallypoint\nrallypoint.join('job', 'http://a:1', min_nodes=3, max_nodes=2)\n"
    )
    said = {
        mode: subprocess.run(
            [sys.executable, *mode, str(program)], capture_output=True, text=True, timeout=60
        ).stderr
        for mode in ((), ("-X", "dev"))
    }
    assert "join_plan.py" not in said[()]
    assert "join_plan.py" in said["-X", "dev"]
    assert said[()].splitlines()[-1] == (
        "rallypoint.errors.UsageError: max_nodes (2) must not be below min_nodes (3)"
    )
