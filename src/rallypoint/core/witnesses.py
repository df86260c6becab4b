"""Whether the host of a silent member is gone, as other members say (R8).

When two heartbeats of a member are missing, its host's watchers are asked (`watching`): each has
connected to that host earlier in this run, and been answered. If the kernel of the host answers one
of them, by accepting or by refusing a connection, the host lives, and only the process of the
member is stopped or cut off from here. If it answers none, though others answer the witness at the
same time, the host is gone: its members are lost as soon as they are suspect.

The answer of one host counts for all members on it. What a witness on the coordinator's own machine
says counts only beside another one: it has the same network as the coordinator, which does not hear
the member either. This file must not send or connect: `client/witness.py` does.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from rallypoint.core import reasons
from rallypoint.core.effects import AskWitness, Effect, HostJudged, TimerKind
from rallypoint.core.roster import Member, Roster
from rallypoint.core.timers import Timers
from rallypoint.core.values import FrozenStruct, HostReport, Reachability, RunSettings
from rallypoint.core.watching import Watching

LOOK_S: Final = 3.0
"""How long a witness tries to reach a host before it says that it is not answered."""
ANSWER_S: Final = 1.0
"""How much later than that its answer may arrive."""
JUDGE_AFTER_S: Final = 0.05
"""When all witnesses have answered, other input that has arrived by now is read first."""
QUESTIONS_MAX: Final = 8
"""About so many hosts witnesses are asked at a time."""
MISSED_PART: Final = 0.75
"""Two heartbeats are missing after this part of `suspect_after_s`: there are three in it, and a
quarter of one may be on its way."""
TRIES_MAX: Final = 3
"""How often witnesses are asked about a silent host that they cannot tell about."""


def missed_after_s(suspect_after_s: float) -> float:
    """For how long a member has not been heard when witnesses are asked about its host."""
    # R8: what they say is not old when the member is suspect, so it may be lost for it.
    return max(MISSED_PART * suspect_after_s, suspect_after_s - LOOK_S)


class Evidence(FrozenStruct, frozen=True):
    """What witnesses have found. `lives`: whether the host answered one of these."""

    lives: bool
    witnesses: tuple[str, ...]

    def __str__(self) -> str:
        text = reasons.host_lives if self.lives else reasons.host_gone
        return text(self.witnesses)


class _Question:
    """An open question about a host."""

    def __init__(self, number: int, asked: list[Member]) -> None:
        self.number = number
        self.said: dict[str, HostReport | None] = {member.name: None for member in asked}
        self.beside = {member.name: member.is_beside for member in asked}

    def evidence(self) -> Evidence | None:
        """What the testimonies prove by now; None: nothing."""
        answered = self._names(HostReport.ANSWERED)
        # R8: one answer proves that the host lives.
        if answered:
            return Evidence(True, answered)
        silent = self._names(HostReport.NOT_ANSWERED)
        # R8: what cannot be told from a trouble of the coordinator's own network proves nothing.
        has_other = any(not self.beside[name] for name in silent)
        # R8: nor does it while the network of as many witnesses is in trouble.
        is_clear = len(silent) > len(self._names(HostReport.UNSURE))
        return Evidence(False, silent) if has_other and is_clear else None

    def _names(self, report: HostReport) -> tuple[str, ...]:
        return tuple(name for name, said in self.said.items() if said is report)


class Witnesses:
    """The questions that are open, and the evidence, of one run."""

    def __init__(self, roster: Roster, timers: Timers) -> None:
        self._roster = roster
        self._timers = timers
        self.watching = Watching(roster, timers)
        self._unheard: dict[str, None] = {}
        """Members of which two heartbeats are missing."""
        self._open: dict[str, _Question] = {}
        """By host."""
        self._evidence: dict[str, Evidence] = {}
        """By host, until one of its members is heard."""
        self._unasked: dict[str, None] = {}
        """Hosts about which nobody could be asked yet: there were too many at a time."""
        self._tries: dict[str, int] = {}
        """How often witnesses were asked about a host since it was heard."""
        self._serial = 0

    @property
    def is_idle(self) -> bool:
        """Whether no member has missed heartbeats, which is nearly always so."""
        return not self._unheard

    # -- members ---------------------------------------------------------------------------------

    def attached(self, member: Member) -> list[Effect]:
        """A member has attached, for the first time or again."""
        before = self.watching.host_of(member.name)
        effects = self.watching.attached(member)
        self._left(before)
        self.heard(member)
        return effects

    def gone(self, member: Member) -> list[Effect]:
        """It is no member any more."""
        host = self.watching.host_of(member.name)
        effects = self.watching.gone(member)
        self._unheard.pop(member.name, None)
        self._left(host)
        return effects

    def _left(self, host: str | None) -> None:
        """A member is on this host no more."""
        if host is not None and not any(self.watching.members_at(host)):
            self._forget(host)

    def heard(self, member: Member) -> None:
        """A member was heard: its host lives, whatever others say."""
        self._unheard.pop(member.name, None)
        host = self.watching.host_of(member.name)
        if host is not None:
            # R8: a member that answers is not lost.
            self._forget(host)

    def missed(self, member: Member, settings: RunSettings) -> None:
        """Two heartbeats of a member are missing, or more. `ask_next` follows."""
        self.unheard(member)
        host = self.watching.host_of(member.name)
        if host is not None:
            self._unasked[host] = None
        # R8: when many are silent at once, their network is the likely cause, and none is lost.
        if self._are_many(settings):
            self.drop()

    def unheard(self, member: Member) -> None:
        """The same while nobody may be judged: witnesses are asked later."""
        self._unheard[member.name] = None

    def drop(self) -> None:
        """What was asked and said until now does not count. Later it is asked again."""
        for host in [*self._open, *self._evidence]:
            self._forget(host)
            self._unasked[host] = None

    def judge_again(self) -> None:
        """The ledger is back: what was said before and during its outage does not count.

        `ask_next` follows.
        """
        self.drop()
        for each in map(self.watching.host_of, self._unheard):
            if each is not None:
                self._unasked[each] = None

    # -- questions -------------------------------------------------------------------------------

    @property
    def has_unasked(self) -> bool:
        """Whether there are hosts about which nobody could be asked yet. O(1)."""
        return bool(self._unasked)

    def ask_next(self, settings: RunSettings) -> list[Effect]:
        """Ask about the hosts that wait for it, as far as that is possible now.

        The mass guard must not hold: what is asked while it does is dropped.
        """
        # R8: nobody is lost while many are silent, or most.
        if self._are_many(settings) or not self._hears_most():
            return []
        effects: list[Effect] = []
        for host in list(self._unasked)[: QUESTIONS_MAX - len(self._open)]:
            del self._unasked[host]
            effects += self._ask_about(host)
        return effects

    def _are_many(self, settings: RunSettings) -> bool:
        limit = max(settings.mass_min, settings.mass_fraction * self._roster.awaited_count)
        return len(self._unheard) > limit

    def _ask_about(self, host: str) -> list[Effect]:
        # R8: a question has one answer, until a member of the host is heard.
        if host in self._open or host in self._evidence:
            return []
        tries = self._tries.get(host, 0)
        # R8: nor is it asked again and again.
        if tries >= TRIES_MAX:
            return []
        if not self._is_missed(host):
            return []
        asked = [
            member
            for member in map(self._roster.get, self.watching.watchers(host))
            # R8: a witness that is silent itself cannot be asked.
            if member is not None and self._is_heard(member)
        ]
        if not asked:
            return []
        self._serial += 1
        self._tries[host] = tries + 1
        self._open[host] = _Question(self._serial, asked)
        timer = self._timers.set(TimerKind.WITNESS, LOOK_S + ANSWER_S, name=host)
        return [*(AskWitness(member.id, self._serial, host) for member in asked), timer]

    def testified(self, member: Member, question: int, said: HostReport) -> list[Effect]:
        """A witness has answered a question."""
        for host, each in self._open.items():
            # R8: only those that were asked, and only about what is still open.
            if each.number == question and each.said.get(member.name, said) is None:
                each.said[member.name] = said
                if said is HostReport.ANSWERED:
                    return self._close(host)
                # R8: each witness is waited for, as one answer counts more than all silence.
                if None not in each.said.values():
                    return [self._timers.set(TimerKind.WITNESS, JUDGE_AFTER_S, name=host)]
                return []
        return []

    def timer_fired(self, host: str, settings: RunSettings) -> list[Effect]:
        """All witnesses have answered, or their time is over."""
        if host not in self._open:
            return []
        return [*(self._close(host) or self._ask_about(host)), *self.ask_next(settings)]

    def _close(self, host: str) -> list[Effect]:
        self._timers.cancel(TimerKind.WITNESS, host)
        evidence = self._open.pop(host).evidence()
        if evidence is None:
            return []
        self._evidence[host] = evidence
        names = [member.name for member in self.watching.members_at(host) if member.is_awaited]
        shown = reasons.first_names(names)
        return [HostJudged(shown, len(names), evidence.lives, str(evidence))]

    def lost(self) -> list[tuple[list[Member], str]]:
        """The members of each host that is gone, if all of them are suspect; and the evidence."""
        found: list[tuple[list[Member], str]] = []
        if not self._evidence and not self._open:
            return found
        # R8: if most hosts cannot be heard, the coordinator is on the wrong side of a cut. When
        # it is over, the last ones to return must not be lost for what was said during it.
        if not self._hears_most():
            self.drop()
            return found
        for host, evidence in self._evidence.items():
            # R8: a host that lives keeps its members: only their processes are stopped.
            if not evidence.lives and self._is_suspect(host):
                troubled = [each for each in self.watching.members_at(host) if each.is_troubled]
                found.append((troubled, str(evidence)))
        return found

    def evidence_of(self, name: str) -> Evidence | None:
        """What witnesses have found about the host of a member that cannot be heard."""
        host = self.watching.host_of(name) if name in self._unheard else None
        return None if host is None else self._evidence.get(host)

    # -- the members of a host -------------------------------------------------------------------

    def _is_missed(self, host: str) -> bool:
        """Whether members on the host are missed, and none is heard, which proves that it lives."""
        members = [*self.watching.members_at(host)]
        # R8: nobody misses a member that is done or departing.
        is_awaited = any(each.is_awaited and each.name in self._unheard for each in members)
        return is_awaited and not any(map(self._is_heard, members))

    def _is_suspect(self, host: str) -> bool:
        """Whether none of them is connected and not suspect yet, so all are lost together."""
        members = [each for each in self.watching.members_at(host) if each.is_awaited]
        # R8: none is lost before it was silent for `suspect_after_s`.
        return all(each.reachability is not Reachability.CONNECTED for each in members)

    def _hears_most(self) -> bool:
        """Whether at least half of the hosts have a member that is heard."""
        # R8: a host whose connections are closed is not heard either.
        names = chain(self._unheard, self._roster.troubled_names)
        hosts = dict.fromkeys(map(self.watching.host_of, names))
        unheard = sum(host is not None and self._is_unheard(host) for host in hosts)
        return 2 * unheard <= self.watching.host_count

    def _is_unheard(self, host: str) -> bool:
        """Whether no member on the host is heard, and one should be."""
        members = [*self.watching.members_at(host)]
        return any(each.is_awaited for each in members) and not any(map(self._is_heard, members))

    def _is_heard(self, member: Member) -> bool:
        is_connected = member.reachability is Reachability.CONNECTED
        return is_connected and member.name not in self._unheard

    def _forget(self, host: str) -> None:
        self._evidence.pop(host, None)
        self._tries.pop(host, None)
        self._unasked.pop(host, None)
        if self._open.pop(host, None) is not None:
            self._timers.cancel(TimerKind.WITNESS, host)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value."""
        asked = [(host, tuple(each.said.items())) for host, each in self._open.items()]
        tries = tuple(self._tries.items())
        unasked = tuple(self._unasked)
        return (tuple(self._unheard), tuple(asked), tries, unasked, tuple(self._evidence.items()))
