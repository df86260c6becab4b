"""The simulated network: order, partitions, and the three ways in which a connection ends."""

from __future__ import annotations

import pytest

from rallypoint.simulation.network import WINDOW_BYTES, End, Ending, Network, Quality
from rallypoint.simulation.world import Process, World


class Pair:
    """A server on one host and a client on another, and what each of them hears."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        self.server = self._process("server")
        self.client = self._process("client")
        self.heard: list[bytes] = []
        self.answers: list[bytes] = []
        self.server_ends: list[Ending] = []
        self.client_ends: list[Ending] = []
        self.accepted: list[End] = []
        self.listener = self.network.listen(self.server, "server", 80, self._accept)

    def _process(self, name: str) -> Process:
        process = self.world.process(name)
        self.network.attach(process, name)
        return process

    def _accept(self, end: End) -> None:
        self.accepted.append(end)
        end.on_message = self.heard.append
        end.on_end = self.server_ends.append

    def dial(self) -> End:
        task = self.client.start(self.network.dial(self.client, ("server", 80)))
        assert self.world.run_until(self.world.now_s + 30, task.done)
        end = task.result()
        end.on_message = self.answers.append
        end.on_end = self.client_ends.append
        return end

    def run(self, seconds: float = 10.0) -> None:
        self.world.run_until(self.world.now_s + seconds)


def test_messages_arrive_in_order_both_ways() -> None:
    pair = Pair()
    pair.network.quality = Quality(delay_s=(0.001, 0.5), loss=0.3)
    end = pair.dial()
    sent = [b"%d" % number for number in range(50)]
    for each in sent:
        end.send(each)
        pair.accepted[0].send(each)
    pair.run(300)
    assert pair.heard == sent
    assert pair.answers == sent


def test_nobody_listens() -> None:
    pair = Pair()
    pair.network.unlisten(pair.listener)
    task = pair.client.start(pair.network.dial(pair.client, ("server", 80)))
    pair.run()
    assert isinstance(task.exception(), ConnectionRefusedError)


@pytest.mark.parametrize("way", [("client", "server"), ("server", "client")])
def test_no_answer_through_a_partition_until_it_heals(way: tuple[str, str]) -> None:
    pair = Pair()
    pair.network.block(*way)
    task = pair.client.start(pair.network.dial(pair.client, ("server", 80)))
    pair.run()
    assert not task.done()
    pair.network.unblock(*way)
    pair.run()
    assert task.result().is_open


def test_a_partition_in_one_direction_holds_messages_back_and_loses_none() -> None:
    pair = Pair()
    end = pair.dial()
    pair.network.block("client", "server")
    end.send(b"one")
    pair.accepted[0].send(b"two")
    pair.run()
    assert (pair.heard, pair.answers) == ([], [b"two"])
    end.send(b"three")
    pair.network.unblock("client", "server")
    pair.run()
    assert pair.heard == [b"one", b"three"]


def test_a_close_comes_after_what_was_sent() -> None:
    pair = Pair()
    end = pair.dial()
    end.send(b"last")
    end.close()
    end.send(b"too late")
    pair.run()
    assert (pair.heard, pair.server_ends) == ([b"last"], [Ending.FIN])


def test_a_reset_is_heard_by_the_other_side_only() -> None:
    pair = Pair()
    end = pair.dial()
    end.abort()
    pair.run()
    assert (pair.server_ends, pair.client_ends) == ([Ending.RESET], [])


def test_the_kernel_of_a_dead_process_closes_its_sockets() -> None:
    pair = Pair()
    pair.dial()
    pair.client.kill()
    pair.run()
    assert pair.server_ends == [Ending.FIN]


def test_a_dead_process_that_had_not_read_all_resets() -> None:
    pair = Pair()
    pair.dial()
    pair.client.freeze()
    pair.accepted[0].send(b"never read")
    pair.run(1)
    pair.client.kill()
    pair.run()
    assert pair.server_ends == [Ending.RESET]


def test_a_lost_host_says_nothing_and_its_restart_resets() -> None:
    pair = Pair()
    end = pair.dial()
    pair.network.lose("server")
    end.send(b"into nothing")
    pair.run(60)
    assert pair.client_ends == []
    pair.network.restart("server")
    end.send(b"who is there?")
    pair.run(60)
    assert pair.client_ends == [Ending.RESET]


def test_a_frozen_process_is_dialled_and_reads_when_it_goes_on() -> None:
    pair = Pair()
    pair.server.freeze()
    end = pair.dial()
    end.send(b"early")
    pair.run()
    assert pair.heard == []
    pair.server.thaw()
    pair.run()
    assert pair.heard == [b"early"]


def test_what_the_other_kernel_does_not_take_is_the_backlog() -> None:
    pair = Pair()
    end = pair.dial()
    pair.server.freeze()
    for _ in range(5):
        end.send(bytes(WINDOW_BYTES // 2))
    pair.run()
    assert end.backlog_bytes == 3 * WINDOW_BYTES // 2
    pair.server.thaw()
    pair.run()
    assert end.backlog_bytes == 0
    assert len(pair.heard) == 5
