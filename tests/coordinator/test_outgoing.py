"""Messages that wait for a peer: in order, counted, and a value that many have counted once."""

from __future__ import annotations

from rallypoint.coordinator.outgoing import Begin, Outgoing, Pins, Whole
from rallypoint.core.store import StoreValue
from rallypoint.core.values import Stamp
from rallypoint.wire import messages as wire
from rallypoint.wire.parts import Parts, answer_parts


class Count:
    """What is kept."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, size: int) -> None:
        self.bytes += size


def large(*values: bytes) -> Parts:
    value = values if len(values) > 1 else values[0]
    return answer_parts(wire.StoreAnswer(Stamp(), 1, StoreValue(value)))


def sent(outgoing: Outgoing) -> list[bytes]:
    """All that waits, message by message."""
    messages: list[bytes] = []
    while (piece := outgoing.next()) is not None:
        match piece:
            case Begin():
                messages.append(b"")
            case Whole(payload):
                messages.append(payload)
            case part:
                messages[-1] += part
    return messages


def test_messages_are_sent_in_order_and_nothing_stays_counted() -> None:
    count = Count()
    outgoing = Outgoing(count, Pins(count))
    answer = wire.StoreAnswer(Stamp(), 1, StoreValue(bytes(200_000)))
    outgoing.put(b"first")
    outgoing.put(answer_parts(answer))
    outgoing.put(b"last")
    assert 200_000 < count.bytes < 202_000
    assert sent(outgoing) == [b"first", wire.encode(answer), b"last"]
    assert not outgoing
    assert (count.bytes, outgoing.bytes) == (0, 0)


def test_a_value_that_waits_often_counts_once() -> None:
    count = Count()
    pins, value, other = Pins(count), bytes(100_000), b"\1" * 100_000
    first, second = Outgoing(count, pins), Outgoing(count, pins)
    first.put(large(value, value, value))
    second.put(large(value))
    second.put(large(other, value))
    assert 200_000 < count.bytes < 202_000
    sent(first)
    assert 200_000 < count.bytes < 202_000
    second.close()
    assert count.bytes == 0


def test_the_message_being_sent_is_finished_and_the_rest_dropped() -> None:
    count = Count()
    outgoing = Outgoing(count, Pins(count))
    message = large(bytes(300_000))
    outgoing.put(message)
    outgoing.put(b"dropped")
    outgoing.put(large(b"\1" * 300_000))
    begin = outgoing.next()
    assert begin == Begin(message.size)
    got = bytes(outgoing.next() or b"")  # type: ignore[arg-type]
    outgoing.drop()
    outgoing.put(b"refused")
    while isinstance(piece := outgoing.next(), bytes | memoryview):
        got += piece
    assert got == b"".join(message.pieces(1 << 20))
    assert piece == Whole(b"refused")
    assert outgoing.next() is None
    assert count.bytes == 0


def test_small_values_count_for_each_message() -> None:
    count = Count()
    outgoing = Outgoing(count, Pins(count))
    values = tuple(b"%d" % number * 100 for number in range(1_000))
    outgoing.put(large(*values))
    outgoing.put(large(*values))
    assert count.bytes > 2 * sum(map(len, values))
    outgoing.close()
    assert count.bytes == 0
