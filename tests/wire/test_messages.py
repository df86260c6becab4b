"""Every message encoded and decoded, versions, limits, and bytes that are not a message."""

from __future__ import annotations

import contextlib
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint import errors
from rallypoint.core import store as ops
from rallypoint.core.effects import Standing
from rallypoint.core.progress import Progress
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import (
    NAME_LENGTH_MAX,
    NAMES_SHOWN_MAX,
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    EndedOwner,
    Failure,
    FailureKind,
    HostReport,
    NodeInfo,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    Seat,
    SettingConflict,
    Stamp,
)
from rallypoint.wire import local
from rallypoint.wire import messages as wire
from tests.kinds import examples

STAMP = Stamp("0123456789abcdef", 3, 7)
ADDRESS = Address("host-0.example", 29400)
FAILURE = Failure(FailureKind.SIGNAL, "killed", 1, 0, None, 9, ("last", "lines"))
CHANGE = Change(ChangeKind.WORKER_FAILED, 7, ("a", "b"), 9, "why", 1.5, FAILURE, True, False)
CLOSE = CloseRecord(Outcome.FAILED, "why", "a", 3, 7, CHANGE)
HEAD = RoundHead(7, 3, 2, 4, ADDRESS, "0123456789abcdef", 1)
SEAT = Seat(1, 2, 2)
INFO = NodeInfo("a", 2**62 - 1, "host", ("10.0.0.1", "fd00::1"), 2, {"zone": "z"})
MEMBER = RoundMember("a", 2**62 - 1, "host", ("10.0.0.1",), 2, {"zone": "z"})
REFUSAL = Refusal(
    RefusalCode.CONFLICT, "no", "do", (SettingConflict("min_nodes", "1", "2"),), CLOSE
)
WAITING = Waiting(1, 2, 3, ("c",), 1, 29.5, ("d",), 100.0, True, "no ledger", 3.0, 4, 2.5)
STACK = WorkerStack(5, 1, "stopped", "all_reduce (a.py:4)", True, "File ...", 41, "py-spy")
RUN = RunSettings(min_nodes=2, max_nodes=4, expected_nodes=3, max_restarts=None)

OPS: tuple[ops.StoreOp, ...] = (
    ops.Set("k", b"\0\xff"),
    ops.Get("ключ"),
    ops.Add("n", -(2**63)),
    ops.CompareSet("k", b"", b"new"),
    ops.Append("k", b"more"),
    ops.Wait(("a", "b")),
    ops.Check(()),
    ops.MultiGet(("a",)),
    ops.MultiSet(("a", "b"), (b"1", b"2")),
    ops.DeleteKey(""),
    ops.NumKeys(),
    ops.Barrier("b", 3),
)
RESULTS: tuple[ops.StoreResult, ...] = (
    ops.StoreValue(None),
    ops.StoreValue(True),
    ops.StoreValue(-5),
    ops.StoreValue(b"bytes"),
    ops.StoreValue((b"1", b"2")),
    ops.StoreFailure("timeout", "after 1 s", ("a",), 3),
)
FROM_NODE: tuple[wire.FromNode, ...] = (
    wire.Attach(STAMP, 1, "run", INFO, RUN, "rallypoint 0.1.0"),
    wire.Attach(STAMP, 1, "run", INFO, RUN, "", True, ADDRESS, b"resume secret"),
    wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("process", 7)),
    wire.Ready(STAMP, 7, ADDRESS, 4),
    wire.Failed(STAMP, 7, FAILURE),
    wire.Done(STAMP, 7),
    wire.Departing(STAMP, "preempted"),
    wire.TakesPart(STAMP, 7),
    wire.Draining(STAMP, 7, "a notice of the cloud", 110.0),
    wire.Promise(STAMP, 7, 1_234),
    wire.Goodbye(STAMP, "done"),
    wire.CloseRun(STAMP, Outcome.STOPPED, "asked to"),
    wire.Heartbeat(STAMP),
    wire.Heartbeat(STAMP, Progress(7, 41, 0.5, 600.0)),
    wire.Alive(STAMP),
    wire.Witnessed(STAMP, 3, HostReport.NOT_ANSWERED),
    *(wire.StoreCall(STAMP, 5, op, 1.5, 3, (1, 2)) for op in OPS),
    wire.StoreCall(STAMP, 5, ops.NumKeys()),
    wire.StoreCancel(STAMP, 5),
    wire.AskMembers(STAMP, 5),
    wire.AskWaiting(STAMP, 5),
    wire.StacksTold(STAMP, 5),
    wire.StacksTold(STAMP, -5, (STACK, STACK), Progress(7)),
)
FROM_COORDINATOR: tuple[wire.FromCoordinator, ...] = (
    wire.Welcome(STAMP, 1, 1.5, Standing(7, CHANGE, True, True), "rallypoint 0.1.0"),
    wire.Refused(STAMP, REFUSAL),
    wire.Formed(STAMP, HEAD, SEAT),
    wire.Broken(STAMP, CHANGE),
    wire.CauseFound(STAMP, CHANGE),
    wire.Closed(STAMP, CLOSE),
    wire.Standby(STAMP, True),
    wire.AskedToLeave(STAMP, "operator at 10.0.0.1", "new kernel"),
    wire.Drains(STAMP, 7, Drain(("node-3",), 1, 110.0, "a notice of the cloud", True)),
    wire.StopAt(STAMP, 7, 1_235),
    wire.Probe(STAMP),
    wire.WatchHosts(STAMP, (ADDRESS,)),
    wire.AskWitness(STAMP, 3, "10.0.0.7"),
    wire.Beat(STAMP, 2**40),
    *(wire.StoreAnswer(STAMP, 5, result) for result in RESULTS),
    wire.Members(STAMP, 5, 7, "digest", (MEMBER, MEMBER)),
    wire.WaitingIs(STAMP, 5, WAITING),
    wire.WaitingIs(STAMP, 5, None),
    wire.AskStacks(STAMP, -5, 4_096),
)
FROM_WORKER: tuple[local.FromWorker, ...] = (
    local.Hello("secret", 7, 1),
    *(local.Call(5, op, None) for op in OPS),
    local.Cancel(5),
    local.AskMembers(5),
    local.AskWaiting(5),
    local.Regroup(),
    local.AskWorld(7),
    local.Raised(Failure(FailureKind.EXCEPTION, "boom", 0, 0, last_lines=("Traceback", "boom"))),
    local.Fails(),
    local.Leave("enough"),
    local.Close(Outcome.SUCCEEDED, "trained"),
    local.Progressed(41),
    local.DumpsStacks(4_711, 46),
    local.TakesPart(),
    local.Promise(1_234),
    local.Yielded(),
)
FROM_AGENT: tuple[local.FromAgent, ...] = (
    local.Admitted("a", HEAD, SEAT, CHANGE),
    local.Admitted("a", HEAD, SEAT, None, "ledger", True, "/tmp/stacks.txt"),
    local.Admitted("a", HEAD, SEAT, explain_s=9.0, variables={"RANK": "3"}),
    local.Denied("no"),
    *(local.Answer(5, result) for result in RESULTS),
    local.Members(5, (MEMBER,), ""),
    local.WaitingIs(5, WAITING, ""),
    local.Ended(CHANGE),
    local.RunClosed(CLOSE),
    local.Drains(Drain(("node-3",), 1, 110.0, "a notice of the cloud", True)),
    local.StopAt(1_235),
    local.Departing("preempted"),
)


def name(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", FROM_NODE, ids=name)
def test_a_nodes_message_is_decoded_to_the_same(message: wire.FromNode):
    assert wire.decode_from_node(wire.encode(message)) == message


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=name)
def test_a_coordinators_message_is_decoded_to_the_same(message: wire.FromCoordinator):
    assert wire.decode_from_coordinator(wire.encode(message)) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=name)
def test_a_workers_message_is_decoded_to_the_same(message: local.FromWorker):
    (body,) = local.Unframer().feed(local.encode(message))
    assert local.decode_from_worker(body) == message


@pytest.mark.parametrize("message", FROM_AGENT, ids=name)
def test_an_agents_message_is_decoded_to_the_same(message: local.FromAgent):
    (body,) = local.Unframer().feed(local.encode(message))
    assert local.decode_from_agent(body) == message


@pytest.mark.parametrize(
    ("union", "samples"),
    [
        (wire.FromNode, FROM_NODE),
        (wire.FromCoordinator, FROM_COORDINATOR),
        (local.FromWorker, FROM_WORKER),
        (local.FromAgent, FROM_AGENT),
    ],
)
def test_every_message_has_an_example_above(union: object, samples: tuple[object, ...]):
    assert set(typing.get_args(union)) <= {type(each) for each in samples}
    assert {type(op) for op in OPS} >= set(typing.get_args(ops.StoreOp))


def test_a_table_encoded_beforehand_is_decoded_to_the_same():
    rows = msgspec.Raw(msgspec.msgpack.encode((MEMBER, MEMBER)))
    once = wire.EncodedMembers(STAMP, 5, 7, "digest", rows)
    plain = wire.Members(STAMP, 5, 7, "digest", (MEMBER, MEMBER))
    assert wire.encode(once) == wire.encode(plain)


# -- versions --------------------------------------------------------------------------------------


def test_an_attach_shows_no_secret_in_a_log():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, resume_secret=b"hush-hush")
    assert "hush" not in repr(attach) + str(attach) + repr([attach])
    assert "run" in repr(attach)


def test_an_attach_of_a_release_without_secrets_is_understood():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, "", True, ADDRESS, b"resume secret")
    fields = msgspec.msgpack.decode(wire.encode(attach))
    without = fields[: fields.index(b"resume secret")]
    older = wire.decode_from_node(msgspec.msgpack.encode(without))
    assert isinstance(older, wire.Attach)
    assert older.resume_secret == b""
    assert older == msgspec.structs.replace(attach, resume_secret=b"")


def test_an_attach_of_a_release_that_names_no_ended_owner_is_understood():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("process", 7))
    fields = msgspec.msgpack.decode(wire.encode(attach))
    assert fields[-5:] == [["process", 7, None], False, False, False, False]
    older = wire.decode_from_node(msgspec.msgpack.encode(fields[:-5]))
    assert older == msgspec.structs.replace(attach, ended=None)


def test_a_node_of_a_release_that_takes_no_orders_is_understood():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, takes_orders=True)
    fields = msgspec.msgpack.decode(wire.encode(attach))
    assert fields[-4:] == [True, False, False, False]
    older = wire.decode_from_node(msgspec.msgpack.encode(fields[:-4]))
    assert older == msgspec.structs.replace(attach, takes_orders=False)


def test_a_node_of_a_release_without_witnesses_is_understood():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, is_witness=True)
    fields = msgspec.msgpack.decode(wire.encode(attach))
    assert fields[-2:] == [True, False]
    older = wire.decode_from_node(msgspec.msgpack.encode(fields[:-2]))
    assert older == msgspec.structs.replace(attach, is_witness=False)


def test_a_release_that_knows_no_hangs_reads_one_as_an_exception():
    failure = Failure(FailureKind.EXCEPTION, "no worker has advanced", 5, is_hang=True)
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(failure))
    assert fields[0] == "exception"
    older = msgspec.convert(fields[:-1], Failure)
    assert older == msgspec.structs.replace(failure, is_hang=False)
    assert (failure.kind_name, older.kind_name) == ("hang", "exception")


def test_a_node_of_a_release_that_knows_no_drains_is_understood():
    attach = wire.Attach(STAMP, 1, "run", INFO, RUN, agrees=True)
    fields = msgspec.msgpack.decode(wire.encode(attach))
    older = wire.decode_from_node(msgspec.msgpack.encode(fields[:-1]))
    assert older == msgspec.structs.replace(attach, agrees=False)


def test_an_ended_owner_without_the_address_that_refused_is_understood():
    ended = EndedOwner("process", 7, Address("10.0.0.1", 29400))
    fields = msgspec.msgpack.decode(
        wire.encode(wire.Attach(STAMP, 1, "run", INFO, RUN, ended=ended))
    )
    assert fields[-5].pop() == ["10.0.0.1", 29400]
    older = wire.decode_from_node(msgspec.msgpack.encode(fields))
    assert older == wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("process", 7))


def test_a_node_of_a_release_without_indexes_is_understood_and_understands():
    attach = wire.Attach(STAMP, 1, "run", msgspec.structs.replace(INFO, index=7), RUN)
    fields = msgspec.msgpack.decode(wire.encode(attach))
    (node,) = [each for each in fields if isinstance(each, list) and INFO.host in each]
    assert node.pop() == 7
    older = wire.decode_from_node(msgspec.msgpack.encode(fields))
    assert older == msgspec.structs.replace(attach, node=INFO)
    # An older release ignores what it does not know, as this one does.
    node += [7, "of a later release"]
    assert wire.decode_from_node(msgspec.msgpack.encode(fields)) == attach


def test_supported_versions_are_accepted():
    assert wire.VERSION - 1 <= wire.VERSION_MIN <= wire.VERSION
    for version in range(wire.VERSION_MIN, wire.VERSION + 1):
        assert wire.version_refusal(version) is None
    for version in (wire.VERSION_MIN - 1, wire.VERSION + 1, -1, 2**40):
        refusal = wire.version_refusal(version)
        assert refusal is not None
        assert refusal.code is RefusalCode.VERSION
        assert f"uses wire version {version}" in refusal.message
        assert isinstance(errors.refused(refusal), errors.VersionError)


def test_the_previous_version_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "VERSION", 5)
    monkeypatch.setattr(wire, "VERSION_MIN", 4)
    assert [wire.version_refusal(v) is None for v in (3, 4, 5, 6)] == [False, True, True, False]
    refusal = wire.version_refusal(6)
    assert refusal is not None
    assert "accepts 4 to 5" in refusal.message


def widened(value: object) -> object:
    """The bytes of a later release: every array of fields has one more at its end."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        fields = [widened(getattr(value, name)) for name in value.__struct_fields__]
        tag = [config.tag] if config.tag is not None else []
        return [*tag, *fields, {"new": 1}]
    if isinstance(value, tuple):
        return [widened(each) for each in value]
    return value


@pytest.mark.parametrize("message", FROM_NODE, ids=name)
def test_fields_that_a_later_node_appends_are_tolerated(message: wire.FromNode):
    assert wire.decode_from_node(msgspec.msgpack.encode(widened(message))) == message


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=name)
def test_fields_that_a_later_coordinator_appends_are_tolerated(message: wire.FromCoordinator):
    assert wire.decode_from_coordinator(msgspec.msgpack.encode(widened(message))) == message


# -- sizes -----------------------------------------------------------------------------------------

LARGE = 2**31 - 1
LONGEST_STAMP = Stamp("0" * 16, LARGE, LARGE)


@pytest.mark.parametrize(
    ("message", "bytes_max"),
    [
        (wire.Heartbeat(LONGEST_STAMP), 33),
        (wire.Heartbeat(LONGEST_STAMP, Progress(LARGE, 2**40, 0.123, 600.0)), 66),
        (wire.Alive(LONGEST_STAMP), 35),
        (wire.Probe(LONGEST_STAMP), 35),
        (wire.Beat(LONGEST_STAMP, 2**63), 43),
        (wire.Done(LONGEST_STAMP, LARGE), 39),
        (wire.Standby(LONGEST_STAMP, True, LARGE), 44),
        (
            wire.Formed(
                LONGEST_STAMP,
                RoundHead(LARGE, LARGE, LARGE, LARGE, Address("h" * 64, 65_535), "0" * 16, LARGE),
                Seat(LARGE, LARGE, LARGE),
            ),
            180,
        ),
    ],
    ids=lambda value: name(value) if isinstance(value, wire.Message) else "",
)
def test_frequent_messages_are_small(message: wire.Message, bytes_max: int):
    assert len(wire.encode(message)) <= bytes_max


def test_the_end_of_a_round_shows_a_bounded_number_of_names():
    names = tuple("n" * NAME_LENGTH_MAX for _ in range(NAMES_SHOWN_MAX))
    failure = Failure(FailureKind.OOM, "m" * 4_000, last_lines=("l" * 4_000,) * 64)
    change = Change(ChangeKind.WORKER_FAILED, 1, names, 9_000, "d" * 4_000, failure=failure)
    assert len(wire.encode(wire.Broken(STAMP, change))) < 300_000 < wire.MESSAGE_BYTES_MAX


# -- what is no message ----------------------------------------------------------------------------

DECODERS = (
    wire.decode_from_node,
    wire.decode_from_coordinator,
    local.decode_from_worker,
    local.decode_from_agent,
)
SAMPLES = tuple(map(wire.encode, (*FROM_NODE, *FROM_COORDINATOR))) + tuple(
    local.encode(each)[4:] for each in (*FROM_WORKER, *FROM_AGENT)
)


def decode_all(data: bytes) -> None:
    """R12: bytes become a message, or are refused. Nothing else is raised."""
    for decode in DECODERS:
        with contextlib.suppress(wire.MalformedError):
            decode(data)


@settings(max_examples=examples(500))
@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes):
    decode_all(data)


@settings(max_examples=examples(1_500))
@given(
    st.sampled_from(SAMPLES),
    st.lists(
        st.tuples(st.sampled_from(["flip", "drop", "insert"]), st.integers(0), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_message_with_wrong_bytes_is_refused_or_another_message(
    sample: bytes, changes: list[tuple[str, int, int]]
):
    data = bytearray(sample)
    for how, where, byte in changes:
        index = where % (len(data) or 1)
        if how == "insert" or not data:
            data.insert(index, byte)
        elif how == "flip":
            data[index] ^= byte
        else:
            del data[index]
    decode_all(bytes(data))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from(["attach", "ready", "call", "welcome", "formed", "members", "hello", "set"]),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(max_examples=examples(500))
@given(plain)
def test_well_formed_data_that_is_no_message_is_refused(value: object):
    decode_all(msgspec.msgpack.encode(value))


@pytest.mark.parametrize("sample", SAMPLES[:20])
def test_a_truncated_message_is_refused(sample: bytes):
    for length in range(len(sample)):
        with pytest.raises(wire.MalformedError):
            wire.decode_from_node(sample[:length])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x93\xa3bye\x93\xa1\xff\x01\x01\xa1x", id="text that is no UTF-8"),
        pytest.param(b"\x91" * 100_000, id="depth"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of 4294967295"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 4294967295"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="4 GiB of bytes"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(bytes(wire.MESSAGE_BYTES_MAX + 1), id="too long"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes):
    for decode in DECODERS:
        with pytest.raises(wire.MalformedError) as caught:
            decode(data)
        assert caught.value.refusal.code is RefusalCode.MALFORMED
        assert caught.value.refusal.hint


def refused(message: wire.Message) -> bool:
    try:
        wire.decode_from_node(wire.encode(message))
    except wire.MalformedError:
        return True
    return False


@pytest.mark.parametrize(
    "message",
    [
        wire.Attach(STAMP, 1, "", INFO, RUN),
        wire.Attach(STAMP, 1, "r" * 257, INFO, RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n" * 257, 1, "h"), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", ("a",) * 65), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", (), 0), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", (), 1_000_001), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", labels={"k": "v" * 4_001}), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", stop_s=60.1), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", stop_s=-1.0), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", index=-1), RUN),
        wire.Attach(STAMP, 1, "run", NodeInfo("n", 1, "h", index=2**40), RUN),
        wire.Attach(STAMP, 1, "run", INFO, RUN, resume_secret=b"s" * 65),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("", 1)),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("a/b", 1)),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("a\n", 1)),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("\x00", 1)),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("p" * 65, 1)),
        wire.Attach(STAMP, 1, "run", INFO, RUN, ended=EndedOwner("p", -1)),
        wire.Ready(STAMP, 0, Address("h", 65_536), 1),
        wire.Goodbye(STAMP, "r" * 4_001),
        wire.Failed(STAMP, 1, Failure(FailureKind.OOM, "", last_lines=("",) * 65)),
        wire.StoreCall(STAMP, 1, ops.NumKeys(), None, 0, (1,) * 20_001),
    ],
    ids=name,
)
def test_values_out_of_bounds_are_refused(message: wire.Message):
    assert refused(message)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_impossible_settings_are_refused(number: float):
    data = wire.encode(wire.Attach(STAMP, 1, "run", INFO, RUN))
    decoded = msgspec.msgpack.decode(data)
    for field, value in enumerate(decoded[5]):
        if isinstance(value, float):
            broken = [*decoded[:5], [*decoded[5]], *decoded[6:]]
            broken[5][field] = number
            with pytest.raises(wire.MalformedError):
                wire.decode_from_node(msgspec.msgpack.encode(broken))


# -- frames ----------------------------------------------------------------------------------------


@settings(max_examples=examples(100))
@given(st.lists(st.sampled_from(FROM_WORKER), max_size=5), st.integers(1, 40))
def test_frames_are_whole_in_any_pieces(messages: list[local.FromWorker], size: int):
    stream = b"".join(map(local.encode, messages))
    unframer, bodies = local.Unframer(), []
    for start in range(0, len(stream), size):
        bodies += unframer.feed(stream[start : start + size])
    assert [local.decode_from_worker(body) for body in bodies] == messages


def test_a_frame_of_an_absurd_length_is_refused_by_its_head():
    with pytest.raises(wire.MalformedError, match="4294967295 bytes"):
        local.Unframer().feed(b"\xff\xff\xff\xff")


# -- calls, before they are sent -------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=name)
def test_calls_that_can_be_sent(op: ops.StoreOp):
    assert wire.check_call(op) is None


@pytest.mark.parametrize(
    "op",
    [
        ops.Get(1),  # type: ignore[arg-type]
        ops.Get("\udc80"),
        ops.Set("k", 5),  # type: ignore[arg-type]
        ops.Add("k", 1.5),  # type: ignore[arg-type]
        ops.Add("k", 2**70),
        ops.Wait(("a", None)),  # type: ignore[arg-type]
        ops.Get({"k": 1}),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_call_that_the_coordinator_would_refuse_is_not_sent(op: ops.StoreOp):
    with pytest.raises(errors.UsageError):
        wire.check_call(op)


def test_a_call_that_is_larger_than_a_message():
    assert wire.check_call(ops.Set("k", bytes(wire.CALL_BYTES_MAX - 100))) is None
    failure = wire.check_call(ops.Set("k", bytes(wire.CALL_BYTES_MAX)))
    assert failure is not None
    assert failure.code == ops.LIMIT
    assert "at most" in failure.message
