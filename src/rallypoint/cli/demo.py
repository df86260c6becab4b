"""`rallypoint demo`: four nodes on this machine train, lose one to kill -9, regroup, and finish.

Nothing is simulated: the nodes are agents that `rallypoint run` starts, the training is
examples/train_digits.py, and all data about rounds comes from the coordinator's HTTP API.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

import typer

from rallypoint import settings
from rallypoint.cli import limits, output
from rallypoint.errors import RallypointError, UsageError

ACCURACY_MIN: Final = 0.95
EPOCHS: Final = 25
PAUSE_S: Final = 0.04
"""How long each worker sleeps in each step, in seconds. Without it, the training takes one second.
"""
KILL_AT_EPOCH: Final = 6
JOIN_AT_EPOCH: Final = 12
LIMIT_S: Final = 150.0
"""The time limit, in seconds, for a busy machine. On two idle cores the demo takes less than half a
minute.
"""
LINES_SHOWN: Final = 15


class DemoError(RallypointError):
    """The demo failed."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    nodes: Annotated[
        int,
        typer.Option(
            "--nodes", metavar="N", min=3, max=8, help="How many nodes there are (default: 4)."
        ),
    ] = 4,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the checkpoints and the nodes' output.")
    ] = False,
) -> None:
    """Show nodes on this machine that meet, train, lose one to kill -9 and regroup.

    It takes half a minute.
    """
    settings.check_platform()
    _check_libraries()
    limits.check("`rallypoint demo`", limits.agent_files(nodes, has_log_files=True))
    directory = Path(
        tempfile.mkdtemp(prefix="rp-demo-")
    )  # A short name, because paths of sockets may begin with it, and their length is limited.
    keeps = True  # Kept after an error, so that a user can look at it.
    try:
        code = _run(nodes, directory)
        keeps = keep
    finally:
        if keeps:
            output.note(f"checkpoints and the nodes' output: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    raise typer.Exit(code)


def _run(count: int, directory: Path) -> int:
    with _Signals() as signals:
        try:
            accuracy = Demo(count, directory, signals).run()
        except _Stopped:
            assert signals.number is not None
            output.note(f"{signal.Signals(signals.number).name}: all nodes were stopped")
            return 128 + signals.number
    return 0 if accuracy >= ACCURACY_MIN else 1


class Demo:
    """One demo."""

    def __init__(self, count: int, directory: Path, signals: _Signals) -> None:
        from rallypoint.cli.common import endpoint_of
        from rallypoint.cli.demo_nodes import Nodes
        from rallypoint.cli.demo_story import Story
        from rallypoint.net import free_port

        self._count = count
        self._directory = directory
        self._signals = signals
        self._address = f"127.0.0.1:{free_port()}"
        self._run_id = f"demo-{secrets.token_hex(3)}"
        self._names = [f"node-{i}" for i in range(count)]
        self._victim = self._names[count // 2]
        self._newcomer = f"node-{count}"
        self._began_s = time.time()
        self._story = Story()
        self._nodes = Nodes(endpoint_of(self._address), self._run_id, directory)

    def run(self) -> float:
        """Run it to its end, and return the test accuracy. Raises DemoError; leaves no process."""
        from rallypoint.cli.demo_view import View, show_timeline

        with View(self._story, self._began_s) as view, self._nodes:
            self._begin()
            view.show()
            while not self._is_over():
                self._check()
                self._listen()
                self._act()
                view.show()
            self._nodes.hear_out()
            self._listen()
            view.show()
        show_timeline(self._story)
        return self._tell_accuracy()

    # -- events --------------------------------------------------------------------------------

    def _begin(self) -> None:
        for name in self._names:
            self._start(name)
        self._say(
            f"{self._count} nodes start, each as its own `rallypoint run --nnodes "
            f"{self._count - 1}:{self._count}`: a round needs at least {self._count - 1} of them"
        )
        self._say(f"{self._names[0]} also runs the coordinator, at {self._address}")

    def _start(self, name: str) -> None:
        is_host = name == self._names[0]
        options = {
            "--endpoint": self._address,
            "--run-id": self._run_id,
            "--nnodes": f"{self._count - 1}:{self._count}",
            "--node-name": name,
            "--host-coordinator": "yes" if is_host else "no",
            "--join-timeout": "60s",
            "--stop-timeout": "3s",
        }
        training = {
            "--checkpoints": str(self._directory / "checkpoints"),
            "--epochs": str(EPOCHS),
            "--pause": str(PAUSE_S),
        }
        self._nodes.start(name, [*_flat(options), str(script()), *_flat(training)])
        self._story.started(name)

    def _act(self) -> None:
        """Kill a node after some epochs. Start another one when training goes on without it."""
        story = self._story
        if story.kill is None:
            if story.resumed_round == 1 and story.epoch >= KILL_AT_EPOCH:
                self._kill()
        elif self._newcomer not in self._nodes.agents and (
            story.resumed_round > story.kill.round and story.epoch >= JOIN_AT_EPOCH
        ):
            self._start(self._newcomer)
            self._say(f"{self._newcomer} starts, and takes the free place", "round")

    def _kill(self) -> None:
        now_s = time.time()
        self._nodes.kill(self._victim)
        self._story.killed(
            self._victim,
            now_s,
            f"{self._victim} killed: SIGKILL to its agent. (Not to {self._names[0]}'s agent, which "
            "runs the coordinator: the run would end.)",
        )

    def _is_over(self) -> bool:
        return all(agent.code is not None for agent in self._nodes.agents.values())

    def _listen(self) -> None:
        from rallypoint.cli.demo_nodes import Line

        for each in self._nodes.happenings(within_s=0.1):
            if isinstance(each, Line):
                self._story.take_line(each.text, time.time())
            else:
                self._story.take_status(each.body)

    def _say(self, text: str, kind: str = "") -> None:
        self._story.say(time.time(), text, kind)

    # -- failures ------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise DemoError if a node has failed, or the demo takes too long."""
        if self._signals.number is not None:
            raise _Stopped
        for agent in self._nodes.agents.values():
            # On a busy machine the new node may attach only after the run has succeeded.
            is_late = agent.name == self._newcomer and self._story.accuracy is not None
            if agent.code and not agent.was_killed and not is_late:
                raise _failed(f"{agent.name} ended with exit code {agent.code}", agent.lines)
        if time.time() - self._began_s > LIMIT_S:
            raise _failed(f"it has not finished within {LIMIT_S:g} s", self._last_lines())

    def _last_lines(self) -> list[str]:
        return [line for agent in self._nodes.agents.values() for line in agent.lines[-2:]]

    def _tell_accuracy(self) -> float:
        accuracy = self._story.accuracy
        if accuracy is None:
            raise _failed("the training ended without a result", self._last_lines())
        print()
        print(f"test accuracy {accuracy:.4f} (at least {ACCURACY_MIN} is expected)")
        print(
            f"The training sleeps {PAUSE_S * 1000:g} ms in each step, so that you can watch it. "
            "The times of the rounds are as measured."
        )
        print(
            "Not shown: a machine that loses its power closes no connection, so its node is lost "
            "only after some seconds, when other nodes cannot reach it any more. "
            f"{self._names[0]} runs the coordinator and is not killed."
        )
        return accuracy


def _failed(what: str, lines: list[str]) -> DemoError:
    said = "".join(f"\n  | {line}" for line in lines[-LINES_SHOWN:])
    return DemoError(
        f"the demo has failed: {what}{said}",
        hint="if this machine is very busy, try again later",
    )


def _flat(options: dict[str, str]) -> list[str]:
    return [text for pair in options.items() for text in pair]


# -- requirements --------------------------------------------------------------------------------


def script() -> Path:
    """The path of the training script: the example of a checkout, or the copy in a wheel."""
    here = Path(__file__).resolve()
    in_checkout = here.parents[3] / "examples" / "train_digits.py"
    in_wheel = here.with_name("_demo_train.py")
    found = next((path for path in (in_wheel, in_checkout) if path.is_file()), None)
    if found is None:
        raise UsageError(
            f"the demo's training script is missing: neither {in_wheel} nor {in_checkout} exists",
            hint="install rallypoint again, or add examples/ of the same release",
        )
    return found


def _check_libraries() -> None:
    libraries = {"numpy": "numpy", "sklearn": "scikit-learn"}
    missing = [name for module, name in libraries.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UsageError(
            f"the demo needs numpy and scikit-learn; not installed: {', '.join(missing)}",
            hint="pip install 'rallypoint[examples]'",
        )


# -- signals -------------------------------------------------------------------------------------


class _Stopped(Exception):
    """A signal tells the demo to end."""


class _Signals:
    """Notes the first SIGINT, SIGTERM or SIGHUP, which the loop reads."""

    # The handler raises nothing, because an agent that was just started must get into the list of
    # agents, and the end of the agents, which is bounded in time, must not be interrupted.

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
