"""`status` always has the same fields: in each phase of a run, and from each source.

The types of `coordinator/status.py` have no defaults and take no other field, so an answer that is
read as one has every field, and each is of its type.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint.coordinator import status
from rallypoint.coordinator.ledger_view import Kept, Unread, detail, look, look_at_all
from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.coordinator.status import RunList, RunStatus, RunSummary
from rallypoint.core import events as on
from rallypoint.core.reasons import Waiting
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Change, CloseRecord, Outcome, Phase, RunSettings
from rallypoint.ledger.keys import run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.one_run import NAMES, Case, Held
from tests.coordinator.shared_ledger import until
from tests.loops import run_virtual

jsonschema: Any = pytest.importorskip("jsonschema")
SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "status.schema.json"
SCHEMA: Any = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))


def names(kind: type[msgspec.Struct]) -> set[str]:
    return set(kind.__struct_fields__)


def checked(told: RunStatus) -> RunStatus:
    """The same, as it was read from its JSON; all values of `core` inside have all their fields."""
    body = msgspec.json.encode(told)
    read = msgspec.json.decode(body, type=RunStatus)
    values: list[tuple[Any, type[msgspec.Struct]]] = [
        (read.waiting, Waiting),
        (read.closed, CloseRecord),
        (read.settings, RunSettings),
        *((each.change, Change) for each in read.rounds or []),
    ]
    for value, kind in values:
        assert value is None or set(value) == names(kind)
    assert set(msgspec.json.decode(body)) == names(RunStatus)
    SCHEMA.validate(msgspec.json.decode(body))
    return read


def durations(value: Any, name: str = "") -> list[float]:
    """All that is in seconds, wherever it is."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in durations(inner, key)]
    if isinstance(value, list):
        return [each for inner in value for each in durations(inner, name)]
    return [value] if name.endswith("_s") and value is not None else []


def test_the_fields_are_the_same_in_every_phase() -> None:
    async def main() -> None:
        ledger = Held()
        case = await Case.begun(ledger, 1, "machine-a")
        told: dict[str, RunStatus] = {}

        async def note(what: str) -> None:
            told[what] = checked(
                status.status_of(
                    case.coordinator,
                    case.run,
                    None,
                    list(status.members_of(case.coordinator, case.run, 10)),
                )
            )
            kept = await look(ledger, "run")
            assert kept is not None
            told[f"{what}, from the ledger"] = checked(await detail(ledger, kept, 10, "here"))

        await note("nobody")
        case.come("a")
        await note("gathering")
        ledger.may_write.clear()
        case.come("b")
        case.ready(*NAMES)
        await until_phase(case, Phase.COMMITTING)
        await note("committing")
        ledger.may_write.set()
        await case.is_in(Phase.ACTIVE, 1)
        await note("active")
        case.run.post(on.LedgerLost("away", 0.5, cause=SuspensionCause.COMMIT))
        await note("suspended")
        case.run.post(on.LedgerRestored(SuspensionCause.COMMIT))
        case.fail("a")
        await asyncio.sleep(1.0)
        await note("ended")
        case.run.post(on.CloseRequested("somebody", Outcome.STOPPED, "enough"))
        await until_phase(case, Phase.CLOSED)
        await note("closed")
        await case.shared.hand_over_lease(1.0)
        await case.aclose()
        kept = await look(ledger, "run")
        assert kept is not None
        told["nobody serves"] = checked(await detail(ledger, kept, 10, "here"))
        told["unknown"] = checked(status.unknown("nope", "no run 'nope'", "here"))

        phases = {what: each.phase for what, each in told.items()}
        assert phases == {
            "nobody": "gathering",
            "gathering": "gathering",
            "committing": "committing",
            "active": "active",
            "suspended": "suspended",
            "ended": "gathering",
            "closed": "closed",
            **dict.fromkeys(
                (f"{what}, from the ledger" for what in (
                    "nobody", "gathering", "committing", "active", "suspended", "ended"
                )),
                "unreachable",
            ),
            "closed, from the ledger": "closed",
            "nobody serves": "closed",
            "unknown": "unknown",
        }  # fmt: skip
        assert {each.source for what, each in told.items() if "ledger" in what} == {"ledger"}
        assert [told["unknown"].source, told["unknown"].round] == [None, None]
        assert (told["gathering"].round, told["gathering"].bootstrap) == (0, None)
        for each in told.values():
            assert all(value >= 0 for value in durations(msgspec.to_builtins(each)))
        compare(told["active"], told["active, from the ledger"])
        compare(told["closed"], told["nobody serves"])

    run_virtual(main())


async def until_phase(case: Case, phase: Phase) -> None:
    await until(lambda: case.run.membership.phase is phase)


def compare(own: RunStatus, kept: RunStatus) -> None:
    """The ledger's values equal the coordinator's."""
    for name in (
        *("run_id", "term", "round", "nodes", "size", "restart_count", "closed"),
        *("settings", "bootstrap", "digest", "members_total"),
    ):
        assert getattr(own, name) == getattr(kept, name), name
    for one, other in zip(own.members or [], kept.members or [], strict=True):
        for name in ("name", "host", "addresses", "labels", "workers"):
            assert getattr(one, name) == getattr(other, name), name
    assert [each.ended for each in own.rounds or []] == [each.ended for each in kept.rounds or []]


def test_a_list_has_the_same_fields_for_unreadable_runs_too() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        case = await Case.begun(ledger, 1, "machine-a")
        await ledger.swap(run_key("a/b c"), None, b"\xffnonsense")
        own = [status.summary_of(case.run, None)]
        found = await look_at_all(ledger)
        assert [type(each) for each in found] == [Unread, Kept]
        lines = own + [each.summary() for each in found]
        told = RunList(
            coordinator=status.coordinator_of(case.coordinator), runs=lines, problem=None, next=None
        )
        read = msgspec.json.decode(msgspec.json.encode(told), type=RunList)
        assert [each.run_id for each in read.runs] == ["run", "a/b c", "run"]
        assert [each.phase for each in read.runs] == ["gathering", "unknown", "unreachable"]
        assert "is not a run head" in read.runs[1].reason
        assert [each.run_id for each in map(_summary, await look_at_all(ledger, ["run"]))] == [
            "a/b c"
        ]
        await case.aclose()

    run_virtual(main())


def _summary(each: Kept | Unread) -> RunSummary:
    return each.summary()


def test_the_schema_is_that_of_the_code_and_refuses_other_answers() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == status.schema()
    jsonschema.Draft202012Validator.check_schema(status.schema())
    unknown = msgspec.to_builtins(status.unknown("a", "no such run", "host"))
    SCHEMA.validate(unknown | {"of_a_later_release": 1})
    for wrong in ({}, {**unknown, "round": "1"}, {**unknown, "members": [{}]}):
        assert not SCHEMA.is_valid(wrong)


def test_what_a_round_waited_for_is_told_by_the_events_before_it() -> None:
    def event(seq: int, kind: EventKind, number: int, **more: Any) -> RunEvent:
        return RunEvent(
            term=1, seq=seq, kind=kind, at=1.0, offset_s=1.0, on="host", round=number, **more
        )

    found = status.waits_of(
        [
            event(1, EventKind.FORMED, 1),
            event(2, EventKind.WAITED, 1, node="q2", seconds=39.0, detail="it was ready last"),
            event(3, EventKind.WAITED, 1, nodes=("q3",), count=1, seconds=2.0),
            event(4, EventKind.FORMED, 2),
            event(5, EventKind.WAITED, 2, seconds=3.0),
        ]
    )
    assert found == {2: ["waited 39.0 s for q2: it was ready last", "waited 2.0 s for q3"]}


def test_fields_missing_in_an_older_release_are_null() -> None:
    filled = status.filled({"run_id": "a", "phase": "active", "new": 1}, RunStatus)
    assert set(filled) == names(RunStatus) | {"new"}
    assert (filled["run_id"], filled["losses"]) == ("a", None)


@pytest.mark.parametrize("kind", [RunStatus, RunSummary, RunList])
def test_no_field_can_be_left_out(kind: type[msgspec.Struct]) -> None:
    assert all(each.required for each in msgspec.structs.fields(kind))


def test_every_field_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "status.md").read_text()
    kinds = (RunStatus, RunList, status.CoordinatorStatus, status.OwnerStatus, status.MemberStatus)
    more = (status.ProgressStatus, status.MemberProgress)
    for kind in (*kinds, *more, status.RoundStatus, status.LossStatus):
        for name in names(kind) - {"runs"}:
            assert f"`{name}`" in text, f"{kind.__name__}.{name}"


def test_a_member_whose_round_is_over_is_not_active() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)

        def members() -> dict[str, tuple[str | None, int | None]]:
            found = status.members_of(case.coordinator, case.run, 10)
            return {each.name: (each.state, each.node_rank) for each in found}

        assert sorted(members().values()) == [("active", 0), ("active", 1)]
        case.fail("a")
        await asyncio.sleep(0.1)  # until the verdict
        assert members() == dict.fromkeys(NAMES, ("stopping", None))
        case.ready("a")
        assert members() == {"a": ("ready", None), "b": ("stopping", None)}
        await asyncio.sleep(40.0)  # longer than it may take to stop its workers
        assert members()["b"][0] in ("stopping", "idle")
        await case.aclose()

    run_virtual(main())
