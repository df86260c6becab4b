"""What is written of a round's store, so that another coordinator's store can go on from it.

`Settled` is one call's part of the log; a snapshot is all that a store holds, in items of a bounded
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from rallypoint.core.store.data import Extend, Put, Write
from rallypoint.core.store.operations import Answer, StoreFailure, StoreValue, key_bytes


class AsStored(msgspec.Struct, frozen=True, array_like=True, tag="as"):
    """The result is the value that `key` has after the writes: it need not be written twice."""

    key: str


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="did"):
    """What a call wrote and what it was answered: all that is needed to repeat both (R10, R11)."""

    node: str
    request_id: int
    result: StoreValue | StoreFailure | AsStored
    writes: tuple[Write, ...] = ()


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """Of a snapshot: the node has the answers up to this id, but for those `still_open`.

    With more than fit into one item there are several, for the same `up_to`.
    """

    node: str
    up_to: int
    still_open: tuple[int, ...] = ()


class MoreBytes(msgspec.Struct, frozen=True, array_like=True, tag="more"):
    """Of a snapshot: what follows the bytes that this call was answered in an item before."""

    node: str
    request_id: int
    value: bytes


SnapshotItem: TypeAlias = Put | Extend | Acknowledged | Settled | MoreBytes


_ITEM_OVERHEAD_BYTES: Final = 64


def snapshot_items(
    data: dict[str, bytes],
    sessions: list[tuple[str, tuple[int, tuple[int, ...]] | None, list[Answer]]],
    bytes_max: int,
) -> Iterator[SnapshotItem]:
    for key, value in data.items():
        for number, piece in enumerate(_pieces(value, bytes_max - key_bytes(key))):
            yield Extend(key, piece) if number else Put(key, piece)
    for node, acknowledged, answers in sessions:
        if acknowledged is not None:
            # A number needs 9 bytes at most.
            for ids in _slices(acknowledged[1], max(1, bytes_max // 16)):
                yield Acknowledged(node, acknowledged[0], ids)
        for answer in answers:
            yield from _answer_items(answer, bytes_max - 4 * len(node))


def _answer_items(answer: Answer, bytes_max: int) -> Iterator[SnapshotItem]:
    node, request_id, result = answer.node, answer.request_id, answer.result
    value = result.value if isinstance(result, StoreValue) else None
    if not isinstance(value, bytes):
        yield Settled(node, request_id, result)
        return
    for number, piece in enumerate(_pieces(value, bytes_max)):
        more = MoreBytes(node, request_id, piece)
        yield more if number else Settled(node, request_id, StoreValue(piece))


def _pieces(value: bytes, bytes_max: int) -> Iterator[bytes]:
    """At least one, and each with what an item needs besides within `bytes_max`."""
    room = max(1, bytes_max - _ITEM_OVERHEAD_BYTES)
    for start in range(0, len(value) or 1, room):
        yield value[start : start + room]


def _slices(ids: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(ids) or 1, count):
        yield ids[start : start + count]
