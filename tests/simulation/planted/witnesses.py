"""Bugs of witnesses: whom they ask, what they say, and what follows."""

from __future__ import annotations

from typing import Any

from rallypoint.core.values import HostReport
from rallypoint.core.witnesses import Evidence
from rallypoint.net import refuses
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


def _in_tests(name: str, test: str, *parts: Replacement) -> Bug:
    return Bug(name=name, rule="R8", source="witnesses", parts=parts, by="tests", tests=(test,))


_CORE = "tests/core/test_witnesses.py"
_CLIENT = "tests/client/test_witness.py"
WITNESSES = (
    _in_tests("witnesses-lose-nobody", _CORE, _nobody_is_lost),
    _in_tests("witness-of-silence-wins", _CORE, _silence_outweighs_answers),
    _in_tests("witness-unsure-counts", _CORE, _the_unsure_count),
    _in_tests("witness-outlives-a-heartbeat", _CORE, _heard_for_nothing),
    _in_tests("witness-cut-off-itself", _CLIENT, _own_network_is_whole),
    _in_tests("witness-takes-refusal-for-silence", _CLIENT, _refused_is_no_answer),
    _in_tests("witness-dials-without-limit", _CLIENT, _without_limit),
    _in_tests("witness-tries-for-ever", _CLIENT, _tries_for_ever),
)
