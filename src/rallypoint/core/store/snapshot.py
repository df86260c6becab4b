"""The state of a round's store in writing, from which another coordinator's store continues.

The log has one `Settled` for each call. A snapshot has the whole store, in items of a bounded size.
This file must not decide their encoding, or where they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from rallypoint.core.store.data import Extend, Put, Write
from rallypoint.core.store.operations import Answer, StoreFailure, StoreValue, key_bytes
from rallypoint.core.values import FrozenStruct


class AsStored(FrozenStruct, frozen=True, tag="as"):
    """The result is the value that `key` has after the writes, so the log has it only once."""

    key: str


class Settled(FrozenStruct, frozen=True, tag="did"):
    """A call's writes and its answer, so that both can be repeated (R10, R11)."""

    node: str
    request_id: int
    result: StoreValue | StoreFailure | AsStored
    writes: tuple[Write, ...] = ()


class Acknowledged(FrozenStruct, frozen=True, tag="ack"):
    """Part of a snapshot: the node has the answers up to this id, except those `still_open`.

    If those do not fit into one item, several items have the same `up_to`.
    """

    node: str
    up_to: int
    still_open: tuple[int, ...] = ()


class MoreBytes(FrozenStruct, frozen=True, tag="more"):
    """Part of a snapshot: the next bytes of an answer that began in an earlier item."""

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
    """The items of a snapshot: the data, then each node's acknowledgements and answers."""
    for key, value in data.items():
        for number, piece in enumerate(_pieces(value, bytes_max - key_bytes(key))):
            yield Extend(key, piece) if number else Put(key, piece)
    for node, acknowledged, answers in sessions:
        if acknowledged is not None:
            up_to, still_open = acknowledged
            count = max(1, bytes_max // 16)  # A number needs 9 bytes at most.
            for start in range(0, len(still_open) or 1, count):
                yield Acknowledged(node, up_to, still_open[start : start + count])
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
    """The value in pieces, at least one: each leaves room for the rest of its item."""
    room = max(1, bytes_max - _ITEM_OVERHEAD_BYTES)
    for start in range(0, len(value) or 1, room):
        yield value[start : start + room]
