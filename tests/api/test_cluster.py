"""The cluster for tests of other packages: nodes in this process that are killed and frozen."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import rallypoint
from rallypoint.client.peer_sockets import freed
from rallypoint.core.values import ChangeKind
from rallypoint.testing import Cluster, NodeKilledError
from tests.loops import open_sockets
from tests.waiting import wait_until

pytestmark = pytest.mark.sockets
ROOT = Path(__file__).parents[2]
SHORT = {"suspect_after_s": 4.0, "lost_after_s": 4.0, "probe_s": 0.2, "reconnect_grace_s": 60.0}
"""Above the longest pause of a machine."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    threads, sockets = set(threading.enumerate()), open_sockets()
    with Cluster() as found:
        yield found
    assert {each for each in threading.enumerate() if each.name == "rallypoint"} <= threads
    assert open_sockets() <= sockets


def changed(world: rallypoint.World) -> rallypoint.Change:
    """How the round ended, as soon as it is known."""
    ended = threading.Event()
    world.on_change(lambda change: ended.set())
    assert ended.wait(60), "the round did not end"
    assert world.change is not None
    return world.change


def test_nodes_meet_and_a_killed_one_is_lost_at_once(cluster: Cluster) -> None:
    cluster.start(3, min_nodes=2, **SHORT)
    first = cluster.meet()
    assert {each.size for each in first} == {3}
    killed = cluster.nodes[1]
    killed.kill()
    killed.kill()
    # By the end of its connection, without the reconnect grace of 60 s.
    change = changed(first[0])
    assert (change.kind, change.nodes) == (ChangeKind.NODE_LOST, ("node-1",))
    assert [each.size for each in cluster.meet()] == [2, 2]
    assert repr(killed) == "<ClusterNode node-1 (killed)>"
    with pytest.raises(NodeKilledError, match="'node-1' was killed"):
        killed.run.next_world()
    with pytest.raises(rallypoint.UsageError, match="cannot be frozen"):
        killed.freeze()


@pytest.mark.parametrize("number", range(6))
def test_a_call_that_waits_ends_when_its_node_is_killed(number: int, cluster: Cluster) -> None:
    """At any moment of the call: it may just begin."""
    cluster.start(2)
    node = cluster.nodes[0]
    caught: list[BaseException] = []

    def wait_for_a_round() -> None:
        try:
            node.run.next_world()
        except rallypoint.RallypointError as error:
            caught.append(error)

    thread = threading.Thread(target=wait_for_a_round)
    thread.start()
    thread.join(number * 0.002)
    node.kill()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(each) for each in caught] == [NodeKilledError]


def test_a_frozen_node_is_lost_and_may_come_back(cluster: Cluster) -> None:
    cluster.start(3, min_nodes=2, **SHORT)
    first = cluster.meet()
    frozen = cluster.nodes[2]
    frozen.freeze()
    frozen.freeze()
    assert frozen.is_frozen
    change = changed(first[0])
    assert (change.kind, change.nodes) == (ChangeKind.NODE_LOST, ("node-2",))
    assert [each.size for each in cluster.meet()] == [2, 2]
    frozen.thaw()
    frozen.thaw()
    assert [each.size for each in cluster.meet()] == [3, 3, 3]


def test_a_block_that_hangs_in_spite_of_all_is_told(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """As gloo's sends do in a process that was frozen (peer_sockets.py)."""
    cluster.start(2, min_nodes=1)
    worlds = cluster.meet()
    calls: list[int] = []
    with caplog.at_level(logging.WARNING), freed(worlds[0], 0.05, lambda: calls.append(1)):
        cluster.nodes[1].kill()
        wait_until(lambda: "is still in its block" in caplog.text)
    assert calls == [1]
    assert f"round {worlds[0].number} has ended" in caplog.text


def test_a_frozen_node_can_be_killed(cluster: Cluster) -> None:
    cluster.start(2, min_nodes=1)
    worlds = cluster.meet()
    cluster.nodes[1].freeze()
    cluster.nodes[1].kill()
    assert changed(worlds[0]).nodes == ("node-1",)
    assert cluster.meet()[0].size == 1


def test_a_node_that_joins_later_is_in_the_next_round(cluster: Cluster) -> None:
    cluster.start(1)
    (alone,) = cluster.meet()
    late = cluster.join()
    assert late.name == "node-1"
    futures = threading.Thread(target=late.run.next_world)
    futures.start()
    assert changed(alone).kind is ChangeKind.NODES_JOINED
    cluster.nodes[0].run.next_world()
    futures.join(60)
    assert [each.size for each in cluster.wait_round(2)] == [2, 2]


def test_programs_that_ask_themselves_are_waited_for(cluster: Cluster) -> None:
    cluster.start(3, min_nodes=2)

    def program(run: rallypoint.Run) -> None:
        try:
            for world in run.worlds():
                changed(world)
        except NodeKilledError:
            pass

    threads = [threading.Thread(target=program, args=(each.run,)) for each in cluster.nodes]
    for each in threads:
        each.start()
    cluster.wait_round(3)
    cluster.nodes[0].kill()
    cluster.wait_round(2)
    cluster.nodes[1].run.close("seen")
    for each in threads:
        each.join(60)
        assert not each.is_alive()


def test_waits_that_end_in_vain_say_why(cluster: Cluster) -> None:
    cluster.start(1, min_nodes=2)
    with pytest.raises(
        TimeoutError, match=r"no round was formed within 0.2 s: 1 of at least 2 nodes"
    ):
        cluster.meet(timeout_s=0.2)
    with pytest.raises(TimeoutError, match=r"not in one round within 0.2 s"):
        cluster.wait_round(timeout_s=0.2)
    with pytest.raises(rallypoint.UsageError, match="has started"):
        cluster.start(1)


def test_what_cannot_be_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="lost_after_s"):
        cluster.start(2, lost_after_s=1.0)
    with pytest.raises(TypeError, match="no_such_setting"):
        cluster.start(2, no_such_setting=1)
    cluster.start(1)
    cluster.meet()
    cluster.nodes[0].run.close("over")
    with pytest.raises(rallypoint.UsageError, match=r"the run is over: .*over"):
        cluster.meet()


def test_a_cluster_does_not_read_this_process_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_TOKEN", "a-token-of-somebody-else")
    monkeypatch.setenv("RALLYPOINT_LAST_CALL", "nonsense")
    cluster.start(2)
    assert len(cluster.meet()) == 2


# -- the plugin ----------------------------------------------------------------------------------


def run_pytest(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # The plugin is named, because this checkout may not be installed.
    plugin = ("-p", "rallypoint.pytest_plugin")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.processes
def test_the_tests_of_the_guide_pass(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert program.count("\n") <= 15
    (tmp_path / "test_guide.py").write_text(program)
    done = run_pytest(tmp_path, "-W", "error", "test_guide.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.processes
def test_the_plugin_loads_nothing_until_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text(
        "import sys\n"
        "def test_light(request):\n"
        "    assert request.config.pluginmanager.has_plugin('rallypoint.pytest_plugin')\n"
        "    loaded = [m for m in ('aiohttp', 'msgspec', 'asyncio') if m in sys.modules]\n"
        "    ours = [m for m in sys.modules if m.startswith('rallypoint')]\n"
        "    assert not loaded\n"
        "    names = {'rallypoint', 'rallypoint._version', 'rallypoint.pytest_plugin'}\n"
        "    assert set(ours) == names\n"
    )
    done = run_pytest(tmp_path, "test_light.py")
    assert done.returncode == 0, done.stdout + done.stderr
