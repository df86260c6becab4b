"""Hostile nodes that hold the token: WebSocket frames, and messages of every kind and mutation."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any, Final

import msgspec

from rallypoint.core.values import RunSettings
from rallypoint.wire import messages as wire
from tests.fuzz.making import Make, Maker, bent, hostile, packed
from tests.fuzz.watching import Watch
from tests.fuzz.world import HANDSHAKE, HANDSHAKE_TURNS, Answers, Connecting, World, framed, turns

STEPS: Final = 1_200
PEERS: Final = 8

_RUNS: Final = ("r", "r", "r", "q0", "q1", "q2", "a/b", "..")
_ODD_RUNS: Final = ("\U0001f600" * 256, "x" * 257, "\n", "")
_ODD_HOSTS: Final = ("a b", "h\0", "-x", "h" * 256, "é", "")

_SETTINGS: Final = tuple(
    msgspec.to_builtins(each)
    for each in (
        RunSettings(
            min_nodes=1,
            max_nodes=3,
            max_restarts=None,
            last_call_s=0.01,
            settle_s=0.0,
            scale_up_delay_s=0.0,
            reconnect_grace_s=0.02,
            suspect_after_s=0.3,
            probe_s=0.01,
            lost_after_s=0.5,
            mass_min=3,
            mass_grace_s=0.1,
        ),
        RunSettings(
            min_nodes=2, max_nodes=2, max_restarts=1, last_call_s=0.0, probe_s=0.0, mass_grace_s=0.1
        ),
        RunSettings(
            rank_policy="natural",
            max_nodes=4,
            suspect_after_s=1e-9,
            lost_after_s=1e-9,
            reconnect_grace_s=0.0,
            mass_grace_s=0.0,
        ),
        RunSettings(
            max_nodes=2**40, mass_min=0, mass_fraction=0.0, mass_grace_s=1.0, reconnect_grace_s=1.0
        ),
    )
)


def _run(rng: Random) -> str:
    return rng.choice(_ODD_RUNS if rng.random() < 0.03 else _RUNS)


class Known:
    """What a hostile node has learnt, so that its messages mean something: see `_POOLS`."""

    def __init__(self) -> None:
        self.stamp: list[Any] = ["", 0, 0]
        self.request = 0
        self.run = "r"


_now = Known()
"""Of the peer that speaks now: the makers below are made once for all."""


def _some_stamp(rng: Random) -> Any:
    known = _now.stamp
    if rng.random() < 0.7:
        return known
    return rng.choice((["", 0, 0], [known[0], known[1], 2**40], ["zz", 1, 1]))


def _some_round(rng: Random) -> int:
    number: int = _now.stamp[2]
    return rng.choice((number, number, number, number, number - 1, number + 1, 0, 2**63 - 1))


def _some_request(rng: Random) -> int:
    _now.request += 1
    number = _now.request
    return rng.choice((number, number, number, number, number - 1, 0, 2**63 - 1))


def _some_settings(rng: Random) -> Any:
    usual = _SETTINGS[sum(map(ord, _now.run)) % len(_SETTINGS)]
    return usual if rng.random() < 0.95 else rng.choice(_SETTINGS)


def _mostly(usual: Sequence[Any], odd: Sequence[Any], odd_share: float = 0.03) -> Make:
    return lambda rng: rng.choice(odd if rng.random() < odd_share else usual)


def _several(each: Make) -> Make:
    return lambda rng: [each(rng) for _ in range(rng.choice((0, 1, 2, 5)))]


_key = _mostly(("k", "l", "m", "", "\0", "\U0001f600"), ("y" * 4_096, "z" * 4_097))
_value = _mostly((b"", b"1", b"12x", b"-5", b"\xff", b" 1"), (b"9" * 64, b"9223372036854775807"))
_POOLS: Final[dict[str, Make]] = {
    "stamp": _some_stamp,
    "round": _some_round,
    "leaving_round": _some_round,
    "request_id": _some_request,
    "acknowledged": lambda rng: rng.choice((0, _now.request - 1, _now.request, 2**40)),
    "still_open": _mostly(([],), ([1], [2**63 - 1, -1], list(range(300)))),
    "key": _key,
    "keys": _several(_key),
    "value": _value,
    "values": _several(_value),
    "expected": _value,
    "desired": _value,
    "amount": _mostly((1, 1, -1, 0), (2**63 - 1, -(2**63))),
    "rank": _mostly((0, 1, 2, 0), (-1, 2**63 - 1)),
    "host": _mostly(("h", "h1", "127.0.0.1", "::1", "fe80::1%eth0"), _ODD_HOSTS),
    "addresses": _mostly(([], ["h"], ["10.0.0.1", "::1"]), (["h\0"], ["h"] * 65)),
    "labels": _mostly(({}, {"rack": "7"}), ({"a": "\n"}, {"a": "\U0001f600" * 256})),
    "stop_s": _mostly((0.0, 5.0), (60.0, 61.0, math.nan)),
    "timeout_s": _mostly((None, 0.0, 0.01, 5.0), (-1.0, 1e308, math.inf, math.nan)),
    "version": _mostly((1,), (0, 2, -1)),
    "name": _mostly(
        (*(f"n{number}" for number in range(12)), "9", "10", "a/b"),
        (" ", "n\n", "\U0001f600" * 256),
    ),
    "incarnation": _mostly((1, 1, 1, 2, 3), (-5, 2**63 - 1)),
    "settings": _some_settings,
    "resume_secret": lambda rng: rng.choice((b"", b"", b"s" * 16, b"t" * 16)),
    "software": lambda rng: "fuzz",
}
_USUAL: Final = (
    *(wire.Ready, wire.Ready, wire.Ready, wire.Failed, wire.Done, wire.Departing),
    *(wire.Heartbeat, wire.Alive, wire.AskMembers, wire.AskWaiting),
    *(wire.StoreCancel, wire.StoreCancel),
)


@cache
def _maker(type: Any, wrong: float = 0.0003) -> Make:
    return Maker(type, _POOLS, wrong).make


class Peer:
    """One connection after the other of a hostile node."""

    def __init__(self, world: Connecting, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._answers = Answers()
        self._known = Known()
        self._any = _maker(wire.FromNode, 0.05)
        self.transport = world.connect()
        self.transport.end()

    # -- a step --------------------------------------------------------------------------------

    async def step(self) -> int:
        """Send something. How many frames it was."""
        global _now
        _now = self._known
        if self.transport.is_closing() or self.transport.is_gone:
            return await self._connect()
        rng = self._rng
        count, data = self._some_frames()
        if len(data) > 2 and rng.random() < 0.05:
            cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 4)))
            for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                self.transport.bring(data[begin:end])
                if rng.random() < 0.3:
                    await turns(1)
        else:
            self.transport.bring(data)
        self._listen()
        if rng.random() < 0.004:
            self.end()
        return count

    async def _connect(self) -> int:
        rng = self._rng
        self.transport = self._world.connect()
        self._answers = Answers()
        self._known.run, self._known.stamp = _run(rng), ["", 0, 0]
        first = self._first()
        kind = rng.random()
        if kind < 0.03:  # with the handshake, whole or in part
            self.transport.bring(HANDSHAKE + first[: rng.randint(0, len(first))])
            first = b""
        elif kind < 0.05:
            self.transport.bring(bent(HANDSHAKE, rng))
        else:
            self.transport.bring(HANDSHAKE)
        await turns(HANDSHAKE_TURNS)
        self._listen()
        if rng.random() < 0.05:  # much, before it attaches
            self.transport.bring(framed(b"", 0x89) * rng.randrange(60))
        if first and rng.random() < 0.97:
            self.transport.bring(first)
            self._listen()
        return 2

    def _first(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.03:
            return framed(packed(self._any(rng)))
        message = _maker(wire.Attach)(rng)
        if isinstance(message, list) and len(message) > 3 and rng.random() < 0.95:
            message[3] = self._known.run
            if rng.random() < 0.9:
                message[1] = ["", 0, 0]
        return framed(packed(message))

    def end(self) -> None:
        """By FIN or by a reset."""
        error = ConnectionResetError(104, "reset") if self._rng.random() < 0.4 else None
        self.transport.end(error)

    def _listen(self) -> None:
        for message in self._answers.take(self.transport.take()):
            stamp = message.stamp
            self._known.stamp = [stamp.ledger_id, stamp.term, stamp.round]

    def _some_frames(self) -> tuple[int, bytes]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.80:
            return 1, framed(self._message())
        if kind < 0.90:
            most = 80 if rng.random() < 0.1 else 9  # also more than one turn takes
            several = [framed(self._message()) for _ in range(rng.randrange(2, most))]
            return len(several), b"".join(several)
        if kind < 0.93:
            return 1, framed(self._message(), key=rng.randbytes(4))
        if kind < 0.96:  # pings and pongs, also long ones
            size = rng.choice((0, 1, 4, 125, 125, 126)) if rng.random() < 0.1 else 4
            return 1, framed(b"p" * size, rng.choice((0x89, 0x8A)))
        if kind < 0.992:
            return self._fragments()
        return 1, self._odd_frame()

    def _fragments(self) -> tuple[int, bytes]:
        rng, payload = self._rng, self._message()
        count = rng.choice((1, 2, 3, 10))
        size = max(1, len(payload) // count)
        parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        frames = []
        for number, part in enumerate(parts):
            first = (0x02 if number == 0 else 0x00) | (0x80 if number == len(parts) - 1 else 0)
            frames.append(framed(part, first))
            if rng.random() < 0.1:  # between fragments
                frames.append(framed(b"", rng.choice((0x89, 0x8A, 0x82, 0x80, 0x88))))
        return len(frames), b"".join(frames)

    def _odd_frame(self) -> bytes:
        rng = self._rng
        payload = self._message()
        match rng.randrange(9):
            case 0:  # any opcode, any reserved bit
                return framed(payload, rng.randrange(256))
            case 1:  # without a mask
                return bytes((0x82, len(payload) % 126)) + payload
            case 2:  # sizes that are not so
                return bytes((0x82, 0xFF)) + rng.choice(
                    (b"\xff" * 8, b"\x80" + b"\0" * 7, (8 << 20).to_bytes(8), b"\0" * 8)
                )
            case 3:
                return bytes((0x82, 0xFE)) + rng.randbytes(6)
            case 4:  # a closing handshake
                code = rng.choice((b"", b"\x03", b"\x03\xe8", b"\x03\xe8\xff\xfe", b"\xff\xff"))
                return framed(code + rng.choice((b"", b"bye")), 0x88)
            case 5:
                return framed(payload, 0x81)
            case 6:
                return bent(framed(payload), rng)
            case 7:
                return rng.randbytes(rng.randrange(1, 40))
            case _:
                return framed(packed(hostile(rng)))

    def _message(self) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.62:
            return packed(_maker(wire.StoreCall)(rng))
        if kind < 0.985:
            return packed(_maker(rng.choice(_USUAL))(rng))
        if kind < 0.990:
            return packed(_maker(rng.choice((wire.CloseRun, wire.Goodbye, wire.Attach)))(rng))
        if kind < 0.995:
            return packed(self._any(rng))
        return bent(packed(_maker(wire.StoreCall)(rng)), rng)


async def _episode(rng: Random, watch: Watch) -> int:
    asyncio.get_running_loop().set_exception_handler(watch.on_loop)
    inputs = 0
    kind = rng.random()
    async with World(is_shared=kind < 0.2, is_checked=kind > 0.98) as world:
        peers = [Peer(world, rng) for _ in range(PEERS)]
        for number in range(STEPS):
            inputs += await rng.choice(peers).step()
            chance = rng.random()
            if chance < 0.2:
                await turns(1)
            elif chance < 0.22:
                await asyncio.sleep(rng.choice((0.001, 0.02, 0.3, 2.0)))
            if number % 100 == 99:
                await world.honest.check()
                watch.check()
        for peer in peers:
            peer.end()
        await world.check_empty()
        await world.honest.check()
    return inputs


def episode(rng: Random, watch: Watch) -> int:
    """Some hundred frames of hostile nodes at one coordinator. How many it were."""
    from tests.loops import run_virtual

    return run_virtual(_episode(rng, watch))
