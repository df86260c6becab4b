"""Bugs of witnesses: whom they ask, what they say, and what follows."""

from __future__ import annotations

from typing import Any

from rallypoint.core.values import HostReport
from rallypoint.core.witnesses import Evidence
from rallypoint.net import refuses
from rallypoint.wire import messages as wire
from tests.simulation.planted.planting import Bug, Replacement, replaces


@replaces("rallypoint.core.witnesses:Witnesses.lost")
def _nobody_is_lost(original: Any, self: Any) -> Any:
    """What witnesses say is only shown."""
    return []


@replaces("rallypoint.core.witnesses:_Question.evidence")
def _silence_outweighs_answers(original: Any, self: Any) -> Any:
    """One witness that is not answered counts more than another one that is."""
    silent = self._names(HostReport.NOT_ANSWERED)
    return Evidence(False, silent) if silent else original(self)


@replaces("rallypoint.core.witnesses:_Question.evidence")
def _the_unsure_count(original: Any, self: Any) -> Any:
    """A witness that reaches nobody counts as one that does not reach this host."""
    said = {
        name: HostReport.NOT_ANSWERED if each is HostReport.UNSURE else each
        for name, each in self.said.items()
    }
    self.said = said
    return original(self)


@replaces("rallypoint.core.witnesses:Witnesses.heard")
def _heard_for_nothing(original: Any, self: Any, member: Any) -> None:
    """What was said of a host counts although a member on it was heard since."""
    self._unheard.pop(member.name, None)


@replaces("rallypoint.client.witness:Witness._that_answer")
async def _own_network_is_whole(original: Any, self: Any, others: Any) -> Any:
    """A witness does not look whether anybody else answers it."""
    return others


@replaces("rallypoint.net:answers")
async def _refused_is_no_answer(original: Any, address: Any, limit_s: Any) -> Any:
    """As if a kernel that refuses a connection did not live."""
    refused = await refuses(address, limit_s)
    return False if refused else await original(address, limit_s)


@replaces("rallypoint.client.sightings:Sightings.may_dial")
def _without_limit(original: Any, self: Any, count: Any, now_s: Any) -> bool:
    """A witness connects as often as it is asked."""
    return True


@replaces("rallypoint.client.sightings:Sightings.to_try")
def _tries_for_ever(original: Any, self: Any, addresses: Any) -> Any:
    """An address that never answered is tried again and again."""
    self._tries.clear()
    return original(self, addresses)


@replaces("rallypoint.core.witnesses:Witnesses._hears_most")
def _cut_off_itself(original: Any, self: Any) -> bool:
    """A coordinator that hears few hosts takes the others for gone."""
    return True


@replaces("rallypoint.core.witnesses:Witnesses._is_suspect")
def _before_suspect(original: Any, self: Any, host: Any) -> bool:
    """A member is lost as soon as its host is gone, though it may be heard yet."""
    return True


@replaces("rallypoint.core.witnesses:Witnesses._is_missed")
def _others_on_the_host(original: Any, self: Any, host: Any) -> bool:
    """That another member on the host is heard does not count."""
    return any(each.name in self._unheard for each in self.watching.members_at(host))


@replaces("rallypoint.core.witnesses:Witnesses.judge_again")
def _outage_is_no_trouble(original: Any, self: Any) -> Any:
    """What was said before and during an outage of the ledger counts after it."""


@replaces("rallypoint.core.watching:_next")
def _own_witness(original: Any, ring: Any, place: Any, host: Any, count: Any) -> Any:
    """A host may watch itself."""
    return [each for _, each in ring[:count]] or original(ring, place, host, count)


@replaces("rallypoint.core.witnesses:Witnesses.testified")
def _first_word_counts(original: Any, self: Any, member: Any, question: Any, said: Any) -> Any:
    """The first witness that reports decides, whatever the others find."""
    effects = original(self, member, question, said)
    for host, each in [*self._open.items()]:
        if each.number == question:
            return self._close(host)
    return effects


@replaces("rallypoint.core.witnesses:Witnesses.timer_fired")
def _asks_once(original: Any, self: Any, host: Any, settings: Any) -> Any:
    """Reports that prove nothing are the last ones."""
    return self._close(host) if host in self._open else []


@replaces("rallypoint.core.witnesses:Witnesses.lost")
def _cut_is_forgotten_late(original: Any, self: Any) -> Any:
    """What was said while most hosts were silent counts when the first of them return."""
    return original(self) if self._hears_most() else []


@replaces("rallypoint.core.witnesses:Witnesses.ask_next")
def _asks_only_at_first(original: Any, self: Any, settings: Any) -> Any:
    """Hosts for which there was no room, or no peace, are not asked about later."""
    effects = original(self, settings)
    self._unasked.clear()
    return effects


@replaces("rallypoint.client.machine:NodeMachine.testify")
def _tells_anybody(original: Any, self: Any, asked: Any, report: Any) -> Any:
    """What one coordinator has asked is told to the next one, under the same number."""
    return self._say(wire.Witnessed(self.stamp, asked.question, report))


@replaces("rallypoint.client.witness:Witness._look")
async def _says_so_at_once(original: Any, self: Any, question: Any, host: Any) -> None:
    """A witness says that a host does not answer, and has not tried."""
    self._testify(question, HostReport.NOT_ANSWERED)


def _bug(name: str, *parts: Replacement, tests: str = "") -> Bug:
    by = "tests" if tests else "silent host"
    found = (tests,) if tests else ()
    return Bug(name=name, rule="R8", source="witnesses", parts=parts, by=by, tests=found)


_CORE = "tests/core/test_witnesses.py"
_CLIENT = "tests/client/test_witness.py"
WITNESSES = (
    _bug("witnesses-lose-nobody", _nobody_is_lost),
    _bug("witness-of-silence-wins", _silence_outweighs_answers),
    _bug("witness-unsure-counts", _the_unsure_count),
    _bug("witness-outlives-a-heartbeat", _heard_for_nothing, tests=_CORE),
    _bug("witness-cut-off-itself", _own_network_is_whole),
    _bug("witness-takes-refusal-for-silence", _refused_is_no_answer, tests=_CLIENT),
    _bug("witness-dials-without-limit", _without_limit),
    _bug("witness-tries-for-ever", _tries_for_ever, tests=_CLIENT),
    _bug("witness-of-a-coordinator-cut-off", _cut_off_itself, tests=_CORE),
    _bug("witness-before-suspect", _before_suspect, tests=_CORE),
    _bug("witness-and-others-on-the-host", _others_on_the_host, tests=_CORE),
    _bug("witness-of-before-the-outage", _outage_is_no_trouble, tests=_CORE),
    _bug("witness-of-itself", _own_witness, tests=_CORE),
    _bug("witness-first-word-counts", _first_word_counts),
    _bug("witness-asked-once", _asks_once, tests=_CORE),
    _bug("witness-says-so-at-once", _says_so_at_once),
    _bug("witness-of-a-cut-that-is-over", _cut_is_forgotten_late, tests=_CORE),
    _bug("witness-asked-without-room", _asks_only_at_first, tests=_CORE),
    _bug("witness-tells-anybody", _tells_anybody, tests="tests/client/test_machine_rules.py"),
)
