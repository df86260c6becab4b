"""The records of the election as bytes: damage, newer releases, and the ttl in a lease."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core import election as e
from rallypoint.core.values import (
    NodeId,
    RunSettings,
)
from tests.core.claimant import (
    CLOSE,
    HERE,
    Claimant,
    a_round,
    a_table,
    fields_of,
    found,
    keep,
    lease_in,
    moving,
    register,
    revoked,
    run_swap_of,
    serving,
    swap_of,
)


class TestUnreadableRecords:
    def test_bytes_that_are_no_record_are_refused(self):
        with pytest.raises(e.UnreadableError, match="not a run head of Rallypoint"):
            e.decode_run(b'{"owner": 1}')

    def test_a_list_that_is_no_record_is_refused(self):
        with pytest.raises(e.UnreadableError, match="it has no format number"):
            e.decode_lease(msgspec.msgpack.encode(["hello", 2]))

    def test_a_damaged_register_is_refused(self):
        with pytest.raises(e.UnreadableError, match="this run head is damaged"):
            e.decode_run(msgspec.msgpack.encode([e.FORMAT, "ledger", "run", -4, "me"]))

    def test_a_newer_format_is_refused(self):
        newer = msgspec.structs.replace(register(), format=3)
        with pytest.raises(e.OtherFormatError, match="format 3 was written by a newer release"):
            e.decode_run(e.encode(newer))

    def test_an_older_format_is_refused(self):
        older = msgspec.structs.replace(register(), format=1)
        with pytest.raises(e.OtherFormatError, match="format 1 was written by an older release"):
            e.decode_run(e.encode(older))

    def test_a_newer_format_with_another_layout_is_refused(self):
        with pytest.raises(e.UnreadableError, match="newer release"):
            e.decode_lease(msgspec.msgpack.encode([3, {"process": "x"}]))

    def test_an_impossible_format_is_refused(self):
        with pytest.raises(e.UnreadableError, match="format 0"):
            e.decode_run(e.encode(msgspec.structs.replace(register(), format=0)))

    def test_a_truncated_value_is_refused(self):
        whole = e.encode(register(round=a_round(1, "a"), table=a_table("a")))
        for length in range(len(whole)):
            with pytest.raises(e.UnreadableError):
                e.decode_run(whole[:length])

    @given(st.binary(max_size=200))
    def test_any_bytes_raise_only_errors_of_ours(self, data: bytes):
        for decode in (e.decode_lease, e.decode_run):
            with contextlib.suppress(e.UnreadableError):
                decode(data)

    @given(st.binary(max_size=60), st.integers(0, 60))
    def test_any_change_of_a_value_raises_only_errors_of_ours(self, noise: bytes, at: int):
        whole = e.encode(register(round=a_round(1, "a"), settings=RunSettings(), close=CLOSE))
        for decode in (e.decode_lease, e.decode_run):
            with contextlib.suppress(e.UnreadableError):
                decode(whole[:at] + noise + whole[at + len(noise) :])

    @pytest.mark.parametrize(
        "data", [b"\x91" * 100_000 + b"\x01", b"\xdd\xff\xff\xff\xff", b"\x92\x01\xa1\xff"]
    )
    def test_deep_large_and_non_text_values_raise_only_errors_of_ours(self, data: bytes):
        with pytest.raises(e.UnreadableError):
            e.decode_lease(data)

    def test_an_encoded_record_decodes_to_the_same(self):
        for lease in (serving(), moving(), revoked()):
            assert e.decode_lease(e.encode(lease)) == lease
        chunk = e.Chunk(2, 3, 512, b"digest")
        table = e.Table(rows=a_table("a").rows, chunks=(chunk,))
        full = register(
            round=a_round(1, "a"), table=table, settings=RunSettings(), close=CLOSE, restarts=3
        )
        assert e.decode_run(e.encode(full)) == full

    def test_a_claim_reports_the_reason_and_reads_again(self):
        me = Claimant()
        asked = me.read_run(0.0)
        newer = msgspec.structs.replace(register(), format=e.FORMAT + 1)
        with pytest.raises(e.UnreadableError, match="newer release"):
            me.claim.run_read(asked, found(newer), 0.1)
        assert me.claim.tick(0.5) == [asked]
        run_swap_of(me.claim.run_read(asked, None, 0.6))

    def test_an_unreadable_lease_does_not_count_as_expired(self):
        me = Claimant()
        (asked,) = me.sees(register(), 0.0)
        assert isinstance(asked, e.ReadLease)
        with pytest.raises(e.UnreadableError):
            me.claim.lease_read(asked, e.Versioned(b"x", 3), 0.1)
        assert me.claim.tick(9.0) == [asked]

    @pytest.mark.parametrize("change", [{"run_id": "x"}, {"ledger_id": "x"}])
    def test_the_register_of_another_run_is_refused(self, change: dict[str, str]):
        me = Claimant()
        asked = me.read_run(0.0)
        with pytest.raises(e.UnreadableError, match="not of run run in ledger ledger"):
            me.claim.run_read(asked, found(msgspec.structs.replace(register(), **change)), 0.1)

    def test_the_lease_of_another_process_is_refused(self):
        me = Claimant()
        (asked,) = me.sees(register(), 0.0)
        assert isinstance(asked, e.ReadLease)
        with pytest.raises(e.UnreadableError, match="the lease of third, not of other"):
            me.claim.lease_read(asked, found(serving("third")), 0.1)


class TestFieldsOfANewerRelease:
    """A release must not remove fields of a later one (docs/compatibility.md)."""

    def test_fields_at_the_end_of_a_register_are_kept_when_it_is_sealed(self):
        newer = [*fields_of(register("other", 4)), {"pinned": ["n1"]}, 7]
        me = Claimant()
        there = e.Versioned(msgspec.msgpack.encode(newer), 7)
        (asked,) = me.claim.run_read(me.read_run(0.0), there, 0.0)
        assert isinstance(asked, e.ReadLease)
        sealed = run_swap_of(me.claim.lease_read(asked, None, 0.1))
        assert msgspec.msgpack.decode(sealed.value)[-2:] == [{"pinned": ["n1"]}, 7]
        assert e.decode_run(sealed.value).term == 5

    def test_fields_of_inner_records_are_kept_unless_replaced(self):
        raw = fields_of(register(settings=RunSettings(max_nodes=4), close=CLOSE))
        settings_at = e.RunRegister.__struct_fields__.index("settings")
        raw[settings_at] = [*raw[settings_at], "new setting"]
        read = e.decode_run(msgspec.msgpack.encode(raw))
        same = msgspec.structs.replace(read, settings=RunSettings(max_nodes=4), term=9)
        assert fields_of(same)[settings_at] == raw[settings_at]
        other = msgspec.structs.replace(read, settings=RunSettings(max_nodes=5))
        assert "new setting" not in fields_of(other)[settings_at]

    def test_fields_of_a_lease_are_kept_when_it_is_revoked(self):
        newer = e.decode_lease(msgspec.msgpack.encode([*fields_of(serving()), "zone-b"]))
        assert fields_of(e.revoked_by(newer, "me"))[-1] == "zone-b"

    def test_missing_last_fields_are_added_when_a_value_is_written(self):
        short = e.decode_lease(msgspec.msgpack.encode([e.FORMAT, "p", 3]))
        written = e.decode_lease(e.encode(msgspec.structs.replace(short, ttl_s=30.0)))
        assert (written.beat, written.ttl_s) == (3, 30.0)

    def test_without_new_fields_nothing_more_is_kept(self):
        assert e.decode_lease(e.encode(serving())).as_read == ()


class TestTheTtlOfALease:
    """A15: the ttl in the lease counts, not the setting of the process that looks."""

    SLOW = msgspec.structs.replace(serving(), ttl_s=30.0)

    def test_a_claim_revokes_after_the_ttl_that_the_lease_names(self):
        me = Claimant()
        for now_s in (1.0, 4.0, 12.0, 29.0):
            keep(me.lease, now_s)
            (news,) = me.judges(self.SLOW, now_s)
            assert isinstance(news, e.OwnedElsewhere), now_s
        keep(me.lease, 31.0)
        (swap,) = me.judges(self.SLOW, 31.0)
        assert isinstance(swap, e.SwapLease)
        assert lease_in(swap).ttl_s == 30.0

    def test_a_revoked_lease_still_names_the_node_of_its_process(self):
        hosted = msgspec.structs.replace(serving(), node=NodeId("n", 5))
        assert e.revoked_by(hosted, "me").node == NodeId("n", 5)

    def test_a_lease_has_its_ttl_and_its_node(self):
        made = e.LeaseHolder("me", HERE, e.Timing.of(30.0), node=NodeId("n", 5))
        lease = lease_in(swap_of(made.tick(0.0)))
        assert (lease.ttl_s, lease.node) == (30.0, NodeId("n", 5))


def test_a_head_names_its_last_owners() -> None:
    head = e.RunRegister(e.FORMAT, "ledger", "run", 1, "p0")
    assert head.formers == ()
    for number in range(1, 10):
        head = head.sealed(f"p{number}", e.NO_FLOOR)
    assert head.formers == ("p3", "p4", "p5", "p6", "p7", "p8")
    assert head.freed().formers == ("p4", "p5", "p6", "p7", "p8", "p9")
    again = head.freed().sealed("p5", e.NO_FLOOR)
    assert again.formers == ("p4", "p5", "p6", "p7", "p8", "p9")
    assert head.sealed("p9", e.NO_FLOOR).formers[-1] == "p9"
