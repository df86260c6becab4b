"""The member table in chunks: what is written, what is removed, and what is refused."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.core import events as on
from rallypoint.core.closing import CLOSE_BYTES_MAX, HEAD_BYTES_MAX, bounded_close
from rallypoint.core.effects import Refuse, Welcome
from rallypoint.core.election import FORMAT, Chunk, RunRegister, Table, UnreadableError, encode
from rallypoint.core.membership import Membership
from rallypoint.core.tables import (
    CHUNK_BYTES,
    INLINE_BYTES_MAX,
    RANKS_PER_CHUNK,
    Plan,
    TableKeeper,
    members_of,
    pieces,
    row_bytes,
)
from rallypoint.core.values import (
    Address,
    CloseRecord,
    FailureKind,
    NodeInfo,
    Outcome,
    RoundHead,
    RoundMember,
    RunSettings,
    secret_hash,
)
from tests.core.member_rows import LABELS, a_close, members, restarted


class Store:
    """The chunks that a ledger holds."""

    def __init__(self) -> None:
        self.chunks: dict[Chunk, bytes] = {}
        self.written_bytes = 0

    def commit(self, keeper: TableKeeper, rows: tuple[RoundMember, ...]) -> Table:
        plan = keeper.plan(rows)
        for chunk, data in plan.new:
            assert chunk not in self.chunks, "a name was used twice"
            self.chunks[chunk] = data
            self.written_bytes += len(data)
        for chunk in keeper.committed(plan.table):
            self.chunks.pop(chunk, None)
        assert members_of(plan.table, self.chunks) == rows
        return plan.table


class TestStoring:
    def test_a_small_table_is_in_the_head(self):
        rows = members(8)
        plan = TableKeeper(1, None).plan(rows)
        assert (plan.table, plan.new) == (Table(rows=rows), ())

    def test_a_large_table_is_in_chunks(self):
        rows = members(2_000)
        plan = TableKeeper(1, None).plan(rows)
        assert plan.table.rows == ()
        assert len(plan.new) == len(plan.table.chunks) == 4
        assert members_of(plan.table, dict(plan.new)) == rows

    def test_a_few_large_rows_are_in_chunks_too(self):
        fat = {f"label-{i}": "x" * 250 for i in range(60)}
        assert TableKeeper(1, None).plan(members(2, fat)).table.rows == ()

    def test_an_engine_of_one_value_has_all_in_the_head(self):
        rows = members(2_000)
        assert TableKeeper(1, None, is_inline=True).plan(rows) == Plan(Table(rows=rows), ())

    def test_unchanged_chunks_are_not_written_again(self):
        store, keeper, rows = Store(), TableKeeper(1, None), members(10_000)
        store.commit(keeper, rows)
        first = store.written_bytes
        store.commit(keeper, restarted(rows, 3, 5_000))
        assert store.written_bytes - first < first / 5

    def test_the_next_owner_writes_no_unchanged_chunks_either(self):
        rows = members(10_000)
        table = Store().commit(TableKeeper(1, None), rows)
        plan = TableKeeper(2, table).plan(restarted(rows, 600))
        assert [chunk.term for chunk in plan.table.chunks].count(2) == len(plan.new) == 1

    def test_a_table_that_returns_is_written_under_another_name(self):
        """The removal of the first name may still be under way."""
        store, keeper, rows = Store(), TableKeeper(1, None), members(1_000)
        before = store.commit(keeper, rows)
        store.commit(keeper, restarted(rows, 1))
        after = store.commit(keeper, rows)
        assert before.chunks[0] != after.chunks[0]
        assert before.chunks[0].digest == after.chunks[0].digest
        assert before.chunks[1] == after.chunks[1]

    def test_chunks_of_an_unused_plan_are_removed(self):
        keeper, rows = TableKeeper(1, None), members(1_000)
        lost = keeper.plan(rows)
        plan = keeper.plan(restarted(rows, 1))
        assert set(keeper.committed(plan.table)) == set(lost.table.chunks) - set(plan.table.chunks)

    def test_the_same_plan_again_has_the_same_names(self):
        keeper, rows = TableKeeper(1, None), members(1_000)
        assert keeper.plan(rows) == keeper.plan(rows)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=15, deadline=None)
    def test_any_change_between_rounds_keeps_the_table_readable(self, seed: int):
        """Several owners follow each other. All chunks that no head names are found."""
        rng = random.Random(seed)
        store, keeper = Store(), TableKeeper(1, None)
        rows = members(rng.choice((40, 700, 1_600)), LABELS)
        table = None
        for term in range(1, 6):
            keeper = TableKeeper(term, table)
            for _ in range(3):
                count = rng.randrange(1, len(rows) + 1)
                some = restarted(rows, *rng.sample(range(len(rows)), 3))[:count]
                table = store.commit(keeper, some)
            abandoned = keeper.plan(restarted(rows, 0)).new
            store.chunks.update(dict(abandoned))
        assert table is not None
        named = {(c.term, c.serial) for c in table.chunks}
        there = {(c.term, c.serial) for c in store.chunks}
        successor = TableKeeper(6, table)
        assert set(successor.leftovers(there)) == there - named


class TestRemovingChunks:
    def test_chunks_of_a_later_owner_are_never_removed(self):
        """This owner may be deposed without knowing it."""
        keeper = TableKeeper(3, None)
        assert keeper.leftovers([(1, 1), (3, 9), (4, 1)]) == [(1, 1), (3, 9)]

    def test_chunks_of_a_pending_commit_are_never_removed(self):
        keeper = TableKeeper(3, None)
        plan = keeper.plan(members(1_000))
        names = [(chunk.term, chunk.serial) for chunk, _ in plan.new]
        assert keeper.leftovers(names) == []


class TestCutting:
    def test_a_chunk_is_bounded_in_ranks_and_bytes(self):
        found = pieces(members(5_000, LABELS))
        assert max(piece.rows for piece in found) <= RANKS_PER_CHUNK
        fat = {f"label-{i}": "é" * 250 for i in range(64)}
        for piece in pieces(members(600, fat)):
            assert len(piece.data) < 2 * CHUNK_BYTES

    def test_a_row_is_no_larger_than_estimated(self):
        for row in (
            *members(3, LABELS),
            RoundMember("é" * 256, 2**63 - 1, "h", ("a",) * 64, 4_096),
            RoundMember("n", 2**63 - 1, "h", (), 4_096, LABELS, 59.9, secret_hash(b"secret")),
        ):
            node = NodeInfo(
                row.name,
                row.incarnation,
                row.host,
                row.addresses,
                row.workers,
                row.labels,
                row.stop_s,
            )
            assert len(msgspec.msgpack.encode(row)) <= row_bytes(node)
            ready_with_more = msgspec.structs.replace(node, workers=1)
            assert len(msgspec.msgpack.encode(row)) <= row_bytes(ready_with_more)


class TestReading:
    ROWS = members(1_200)

    def stored(self) -> tuple[Table, dict[Chunk, bytes | None]]:
        plan = TableKeeper(1, None).plan(self.ROWS)
        return plan.table, dict(plan.new)

    def test_a_missing_chunk_is_reported(self):
        table, there = self.stored()
        there[table.chunks[1]] = None
        with pytest.raises(UnreadableError, match=r"chunk 1-2 .* is missing"):
            members_of(table, there)

    @pytest.mark.parametrize("damage", [b"", b"\x92\x02\x90", b"x" * 40])
    def test_a_damaged_chunk_is_reported(self, damage: bytes):
        table, there = self.stored()
        there[table.chunks[0]] = damage
        with pytest.raises(UnreadableError, match=r"chunk 1-1 .* is damaged"):
            members_of(table, there)

    @pytest.mark.parametrize(("format", "missing"), [(FORMAT + 1, 0), (FORMAT, 1)])
    def test_r12_a_chunk_of_another_format_or_size_is_refused(self, format: int, missing: int):
        rows = members(5)
        data = msgspec.msgpack.encode((format, rows[missing:]))
        chunk = Chunk(1, 1, len(rows), hashlib.sha256(data).digest()[:16])
        with pytest.raises(UnreadableError, match=f"has format {format} and"):
            members_of(Table(chunks=(chunk,)), {chunk: data})


class TestTheHead:
    """It stays small, whatever is in it."""

    def head(self, count: int, close: CloseRecord | None = None) -> bytes:
        plan = TableKeeper(1, None).plan(members(count, LABELS))
        head = RoundHead(1, 1, count, 8 * count, Address("h" * 256, 29_500), "0" * 16)
        settings = RunSettings(max_nodes=count)
        register = RunRegister(
            FORMAT, "0" * 16, "x" * 256, 1, "0" * 16, 0, settings, head, plan.table, close
        )
        return encode(register)

    @pytest.mark.parametrize("count", [1, 40, 1_000, 10_000])
    def test_the_head_is_small_with_any_number_of_members(self, count: int):
        assert len(self.head(count)) < HEAD_BYTES_MAX / 4

    def test_the_head_is_small_with_100_000_members_and_the_longest_close(self):
        assert len(self.head(100_000, bounded_close(a_close(64, 4_000)))) < HEAD_BYTES_MAX

    def test_the_table_inside_the_head_is_small(self):
        assert len(self.head(40)) < INLINE_BYTES_MAX + 2_048


class TestAClose:
    @pytest.mark.parametrize("lines", [1, 20, 64])
    @pytest.mark.parametrize("length", [10, 500, 4_000])
    @pytest.mark.parametrize("char", ["x", "\U0001f680"])
    def test_a_close_always_fits(self, lines: int, length: int, char: str):
        close = bounded_close(a_close(lines, length, char))
        assert len(msgspec.msgpack.encode(close)) <= CLOSE_BYTES_MAX
        assert close.outcome is Outcome.FAILED
        assert close.cause is not None
        assert close.cause.failure is not None
        assert close.cause.failure.kind is FailureKind.EXCEPTION

    def test_20_lines_of_4000_characters_keep_their_end(self):
        close = bounded_close(a_close(20, 4_000, "x"))
        assert close.cause is not None
        assert close.cause.failure is not None
        assert len(close.cause.failure.last_lines) == 20
        assert close.cause.failure.last_lines[-1] == "the end"

    def test_a_short_close_is_unchanged(self):
        close = a_close(20, 100, "x")
        assert bounded_close(close) is close


class TestNoRoom:
    """An engine of one value states its limit, and a node beyond it is refused when it attaches."""

    SETTINGS = RunSettings(min_nodes=1, max_nodes=100)

    def attach(self, run: Membership, name: str, **labels: str) -> object:
        node = NodeInfo(name, 1, "host", labels=labels)
        (effect,) = run.step(on.NodeAttached(node, self.SETTINGS, 1), 0.0)
        return effect

    def test_a_node_that_does_not_fit_is_refused_with_the_limit(self):
        small, large = NodeInfo("a", 1, "host"), NodeInfo("b", 1, "host", labels={"n": "x" * 256})
        room = row_bytes(large) + row_bytes(small) - 1
        run = Membership("run", table_bytes_max=room)
        assert isinstance(self.attach(run, "a"), Welcome)
        refused = self.attach(run, "b", n="x" * 256)
        assert isinstance(refused, Refuse)
        told = refused.refusal.message
        assert f"a member table of at most {room} bytes" in told
        assert f"leave {room - row_bytes(small)} free, and this node needs" in told
        assert "about 1 nodes like this one fit" in told

    def test_a_node_that_leaves_frees_its_room(self):
        one = row_bytes(NodeInfo("a", 1, "host"))
        run = Membership("run", table_bytes_max=2 * one)
        for name in "ab":
            assert isinstance(self.attach(run, name), Welcome)
        refused = self.attach(run, "c")
        assert isinstance(refused, Refuse)
        assert "about 2 nodes like this one fit" in refused.refusal.message
        run.step(on.NodeLeft(NodeInfo("b", 1, "host").id, "done"), 0.0)
        assert isinstance(self.attach(run, "c"), Welcome)

    def test_a_node_that_resumes_needs_no_more_room(self):
        run = Membership("run", table_bytes_max=row_bytes(NodeInfo("a", 1, "host")))
        for _ in range(2):
            assert isinstance(self.attach(run, "a"), Welcome)
