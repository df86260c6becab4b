"""R8: what members say of the host of a silent member, and what follows."""

from __future__ import annotations

from typing import Any

import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.values import Address, ChangeKind, HostReport, Phase
from rallypoint.core.watching import WATCH_AFTER_S, WATCHED_MAX, WATCHERS_MAX
from rallypoint.core.witnesses import ANSWER_S, LOOK_S, QUESTIONS_MAX, TRIES_MAX, missed_after_s
from tests.core.driver import Driver, node_id

NODES = "abcdefgh"
ANSWERED, SILENT = HostReport.ANSWERED, HostReport.NOT_ANSWERED
UNSURE, UNSEEN = HostReport.UNSURE, HostReport.UNSEEN


def host(token: str) -> str:
    return f"10.0.0.{ord(token[0]) - ord('a') + 1}"


def running(nodes: str = NODES, beside: str = "", **settings: Any) -> Driver:
    """A round of these nodes, each on its own host, and their watchers chosen."""
    run = Driver(min=1, max=len(nodes), **settings)
    for each in nodes:
        run.attach(each, host=host(each), is_beside=each in beside)
        run.ready(each)
    assert run.phase is Phase.ACTIVE
    run.advance(2 * WATCH_AFTER_S)
    return run


def asked(effects: list[do.Effect]) -> dict[str, int]:
    """Who is asked, and the numbers of the questions."""
    return {e.node.name: e.question for e in effects if isinstance(e, do.AskWitness)}


def missing(run: Driver, *tokens: str) -> dict[str, int]:
    found: list[do.Effect] = []
    for each in tokens:
        found += run.step(on.BeatsMissed(node_id(each), 3.75))
    return asked(found)


def is_member(run: Driver, name: str) -> bool:
    return run.run.roster.get(name) is not None


def all_say(run: Driver, questions: dict[str, int], said: HostReport) -> None:
    for name, question in questions.items():
        run.testify(name, question, said)


def test_a_host_that_is_not_answered_any_more_is_lost_once_its_node_is_suspect() -> None:
    run = running()
    run.take()
    questions = missing(run, "c")
    assert len(questions) == WATCHERS_MAX
    assert "c" not in questions
    run.advance(1.25)
    run.silent("c")
    assert is_member(run, "c")
    run.advance(LOOK_S - 1.25)
    all_say(run, questions, SILENT)
    assert is_member(run, "c")  # Other input that has arrived is read first.
    run.advance(0.1)
    assert not is_member(run, "c")
    [change] = [e.change for _, e in run.take() if isinstance(e, do.Break)]
    assert change.kind is ChangeKind.NODE_LOST
    assert change.nodes == ("c",)
    first, second, third = questions
    said = f"its host did not answer {first}, {second} and {third}, which had reached it before"
    assert change.detail == said


def test_what_witnesses_say_is_fresh_when_a_member_is_suspect() -> None:
    for suspect_after_s in (0.5, 5.0, 12.0, 60.0, 600.0):
        left_s = suspect_after_s - missed_after_s(suspect_after_s)
        assert left_s == min(suspect_after_s / 4, LOOK_S)


def test_nobody_is_lost_before_it_is_suspect() -> None:
    run = running()
    all_say(run, missing(run, "c"), SILENT)
    run.advance(1.2)
    assert is_member(run, "c")
    run.silent("c")
    assert not is_member(run, "c")


def test_a_host_that_answers_one_witness_lives() -> None:
    run = running()
    one, *others = missing(run, "c").items()
    run.take()
    for name, question in others:
        run.testify(name, question, SILENT)
    run.testify(*one, ANSWERED)
    run.silent("c")
    run.advance(20.0)
    assert is_member(run, "c")
    evidence = run.run.witnesses.evidence_of("c")
    assert evidence is not None
    assert evidence.lives
    assert str(evidence) == (
        f"its host answered {one[0]}, so only its process is stopped or cut off"
    )
    run.advance(11.0)
    assert not is_member(run, "c")  # As without witnesses: after `lost_after_s`.


@pytest.mark.parametrize("said", [UNSEEN, UNSURE])
def test_witnesses_that_cannot_tell_prove_nothing(said: HostReport) -> None:
    run = running()
    questions = missing(run, "c")
    run.silent("c")
    times = 0
    while questions:
        times += 1
        all_say(run, questions, said)
        run.take()
        run.advance(0.1)
        questions = asked([effect for _, effect in run.take()])
    assert times == TRIES_MAX  # They are not asked again and again.
    run.advance(20.0)
    assert is_member(run, "c")


def test_a_witness_that_is_sure_counts_beside_one_that_has_never_seen_the_host() -> None:
    run = running()
    (one, number), *others = missing(run, "c").items()
    run.silent("c")
    for name, question in others:
        run.testify(name, question, UNSEEN)
    run.testify(one, number, SILENT)
    run.advance(0.1)
    assert not is_member(run, "c")


def test_as_many_witnesses_in_trouble_prove_nothing() -> None:
    run = running()
    (one, number), (two, _), (three, _) = missing(run, "c").items()
    run.silent("c")
    run.testify(one, number, SILENT)
    run.testify(two, number, UNSURE)
    run.testify(three, number, UNSEEN)
    run.advance(1.0)
    assert is_member(run, "c")


def test_a_witness_beside_the_coordinator_alone_proves_nothing() -> None:
    run = running("ab", beside="a")
    questions = missing(run, "b")
    assert list(questions) == ["a"]
    run.silent("b")
    all_say(run, questions, SILENT)
    run.advance(1.0)
    assert is_member(run, "b")


def test_a_witness_beside_the_coordinator_counts_beside_another_one() -> None:
    run = running("abc", beside="a")
    questions = missing(run, "c")
    assert set(questions) == {"a", "b"}
    run.silent("c")
    all_say(run, questions, SILENT)
    run.advance(0.1)
    assert not is_member(run, "c")


def test_the_host_of_the_coordinator_has_no_witness() -> None:
    run = running(beside="a")
    assert not missing(run, "a")


def test_a_witness_that_does_not_answer_is_waited_for_and_no_longer() -> None:
    run = running()
    (one, number), *_ = missing(run, "c").items()
    run.silent("c")
    run.testify(one, number, SILENT)
    run.advance(LOOK_S)
    assert is_member(run, "c")
    run.advance(ANSWER_S + 0.1)
    assert not is_member(run, "c")


def test_a_node_that_is_heard_is_not_lost_whatever_witnesses_say() -> None:
    run = running()
    questions = missing(run, "c")
    run.heard("c")
    all_say(run, questions, SILENT)
    run.advance(2.0)
    run.silent("c")
    run.advance(2.0)
    assert is_member(run, "c")


def test_a_node_that_is_heard_after_the_testimonies_is_not_lost() -> None:
    run = running()
    all_say(run, missing(run, "c"), SILENT)
    run.heard("c")
    run.advance(2.0)
    run.silent("c")
    assert is_member(run, "c")


@pytest.mark.parametrize("deed", ["disconnect", "die", "leave", "done", "depart"])
def test_a_node_of_the_host_that_does_something_proves_that_it_lives(deed: str) -> None:
    run = Driver(min=1, max=4)
    for token, where in zip("abcd", "abcc", strict=True):
        run.attach(token, host=host(where))
        run.ready(token)
    run.advance(2 * WATCH_AFTER_S)
    missing(run, "c")
    all_say(run, missing(run, "d"), SILENT)
    run.advance(0.1)
    getattr(run, deed)("c")
    run.silent("d")
    assert is_member(run, "d")


def test_a_node_whose_connection_is_closed_is_not_asked_about() -> None:
    run = running()
    run.disconnect("c")
    assert not missing(run, "c")
    assert not missing(run, "x")


def test_beside_a_node_that_is_done_another_one_is_missed() -> None:
    run = Driver(min=1, max=4)
    for token, where in zip("abcd", "abcc", strict=True):
        run.attach(token, host=host(where))
        run.ready(token)
    run.advance(2 * WATCH_AFTER_S)
    run.done("c")
    assert not missing(run, "c")  # `d` is heard.
    assert missing(run, "d")


def test_of_a_node_that_is_done_and_one_that_is_away_none_is_asked_about() -> None:
    run = Driver(min=1, max=4)
    for token, where in zip("abcd", "abcc", strict=True):
        run.attach(token, host=host(where))
        run.ready(token)
    run.advance(2 * WATCH_AFTER_S)
    run.done("c")
    run.disconnect("d")
    assert not missing(run, "c")


def test_a_node_that_is_silent_at_once_is_asked_about_as_well() -> None:
    run = running()
    assert len(asked(run.step(on.NodeSilent(node_id("c"), 5.0)))) == WATCHERS_MAX
    run.lose_ledger()
    assert not asked(run.step(on.NodeSilent(node_id("d"), 5.0)))
    run.take()
    run.restore_ledger()
    hosts = {e.host for _, e in run.take() if isinstance(e, do.AskWitness)}
    assert hosts == {host("c"), host("d")}


def test_a_host_that_is_known_to_live_is_not_asked_about_again() -> None:
    run = running()
    all_say(run, missing(run, "c"), ANSWERED)
    assert not asked(run.step(on.NodeSilent(node_id("c"), 5.0)))


def test_so_many_hosts_are_asked_about_at_a_time() -> None:
    run = running("abcdefghijklmnopqrstuvwxyz", mass_min=20)
    run.take()
    missing(run, *"abcdefghijkl")
    hosts = {e.host for _, e in run.take() if isinstance(e, do.AskWitness)}
    assert len(hosts) == QUESTIONS_MAX


def many(count: int, witnesses: int, lost: int) -> Driver:
    """A run of many hosts, of which the first ones can be witnesses."""
    run = Driver(min=1, max=count, mass_min=lost)
    for i in range(count):
        run.attach(f"n{i}", host=f"10.1.0.{i + 1}", is_witness=i < witnesses)
    run.advance(2 * WATCH_AFTER_S)
    return run


def test_the_other_hosts_are_asked_about_when_there_is_room() -> None:
    lost = [f"n{i}" for i in range(10, 10 + QUESTIONS_MAX + 4)]
    run = many(100, 100, len(lost))
    run.take()
    missing(run, *lost)
    for _ in range(2):
        for each in [e for _, e in run.take() if isinstance(e, do.AskWitness)]:
            if each.node.name not in lost:
                run.testify(each.node.name, each.question, SILENT)
        run.advance(LOOK_S + ANSWER_S + 0.1)
        run.silent(*(each for each in lost if is_member(run, each)))
    assert not [each for each in lost if is_member(run, each)]


def test_who_is_still_silent_after_an_outage_is_asked_about() -> None:
    run = running(mass_min=2)
    missing(run, "c", "d", "e")
    run.silent("c", "d", "e")
    run.advance(5.0)
    run.take()
    run.heard("d", "e")
    about: list[do.Effect]
    about = [e for _, e in run.take() if isinstance(e, do.AskWitness) and e.host == host("c")]
    assert about
    all_say(run, asked(about), SILENT)
    run.advance(0.1)
    assert not is_member(run, "c")


def test_a_node_that_comes_from_another_host_takes_all_about_its_last_one() -> None:
    run = running()
    questions = missing(run, "c")
    run.attach("c", host="10.0.0.99")
    all_say(run, questions, SILENT)
    missing(run, "c")
    run.attach("c", host=host("c"))
    run.silent("c")
    run.advance(LOOK_S + ANSWER_S + 0.1)
    assert is_member(run, "c")
    assert run.run.witnesses.evidence_of("c") is None


def test_few_witnesses_among_many_nodes_watch_no_more_than_they_can() -> None:
    run = many(70, 2, 8)
    told = [e.addresses for _, e in run.take() if isinstance(e, do.Watch)]
    assert [len(each) for each in told] == [WATCHED_MAX, WATCHED_MAX]


def test_a_watcher_that_has_left_is_not_asked() -> None:
    run = running()
    gone = run.run.witnesses.watching.watchers(host("c"))[0]
    run.leave(gone)
    assert gone not in missing(run, "c")


def test_a_host_is_no_witness_of_itself() -> None:
    run = running("ab")
    assert run.run.witnesses.watching.watchers(host("a")) == ("b",)


def test_the_mass_guard_takes_all_testimonies() -> None:
    run = running(mass_min=2, grace=60.0)
    all_say(run, missing(run, "c"), SILENT)
    run.advance(0.5)
    run.disconnect("d", "e", "f")
    assert run.run._suspicion.guarding
    run.silent("c")
    assert is_member(run, "c")
    run.attach("d", host=host("d"))
    run.advance(1.0)
    assert is_member(run, "c")


def test_nobody_is_asked_while_the_guard_holds_because_of_closed_connections() -> None:
    run = running(mass_min=2, grace=60.0)
    missing(run, "c")
    run.disconnect("d", "e", "f")
    assert run.run._suspicion.guarding
    run.take()
    for _ in range(TRIES_MAX + 1):
        run.advance(1.0)
    run.silent("c")
    assert not asked([effect for _, effect in run.take()])


def test_all_nodes_of_a_host_are_lost_together() -> None:
    run = Driver(min=1, max=5)
    for token, where in zip("abcde", "abccd", strict=True):
        run.attach(token, host=host(where))
        run.ready(token)
    run.advance(2 * WATCH_AFTER_S)
    assert not missing(run, "c")  # Another node of its host is heard.
    questions = missing(run, "d")
    assert set(questions) <= set("abe")
    all_say(run, questions, SILENT)
    run.advance(1.0)
    run.silent("c")
    assert is_member(run, "c")
    run.take()
    run.silent("d")
    assert not is_member(run, "c")
    assert not is_member(run, "d")
    [change] = [e.change for _, e in run.take() if isinstance(e, do.Break)]
    assert change.nodes == ("c", "d")


def test_a_node_on_the_host_that_is_heard_proves_that_it_lives() -> None:
    run = Driver(min=1, max=4)
    for token, where in zip("abcd", "abcc", strict=True):
        run.attach(token, host=host(where))
        run.ready(token)
    run.advance(2 * WATCH_AFTER_S)
    missing(run, "c")
    all_say(run, missing(run, "d"), SILENT)
    run.silent("c")
    run.heard("d")
    run.silent("d")
    run.advance(5.0)
    assert is_member(run, "c")


def test_when_many_are_silent_nobody_is_asked_and_nobody_lost() -> None:
    run = running(mass_min=2)
    questions = missing(run, "c")
    all_say(run, questions, SILENT)
    run.advance(0.5)
    missing(run, "d")
    assert not missing(run, "e")
    run.silent("c", "d", "e")
    assert run.run._suspicion.guarding
    run.advance(5.0)
    run.heard("d", "e")
    run.advance(4.0)
    assert is_member(run, "c")  # What was said before the outage does not count.


def test_a_coordinator_that_hears_few_hosts_loses_none_of_the_others() -> None:
    """It is cut off from most, together with a witness that reaches another one."""
    run = running("abcde", mass_min=8)
    missing(run, "c", "d")
    questions = {**missing(run, "e")}
    all_say(run, questions, SILENT)
    run.advance(0.5)
    run.silent("c", "d", "e")
    run.advance(5.0)
    assert is_member(run, "e")


def test_a_coordinator_that_hears_few_hosts_asks_about_no_more_of_them() -> None:
    run = running("abcde", mass_min=8)
    assert missing(run, "c")
    assert missing(run, "d")
    assert not missing(run, "e")


@pytest.mark.parametrize("is_judged", [False, True])
def test_when_a_cut_is_over_the_last_hosts_to_return_are_not_lost(is_judged: bool) -> None:
    """The coordinator was cut off from most, with witnesses that reach each other."""
    run = running("abcdefg", mass_min=8)
    run.take()
    missing(run, "d", "e", "f", "g")
    questions = [e for _, e in run.take() if isinstance(e, do.AskWitness)]
    run.silent("d", "e", "f", "g")
    for each in questions:
        if each.node.name in "abc":
            run.testify(each.node.name, each.question, SILENT)
    if is_judged:
        run.advance(LOOK_S + ANSWER_S + 0.1)
    run.heard("d")
    run.advance(LOOK_S + ANSWER_S + 0.1)
    assert all(is_member(run, each) for each in "defg")


def test_a_host_whose_connection_is_closed_is_not_heard_either() -> None:
    run = running("abcdefg", mass_min=8, grace=60.0)
    run.disconnect("d", "e", "f")
    questions = missing(run, "g")
    all_say(run, questions, SILENT)
    run.silent("g")
    run.advance(1.0)
    assert is_member(run, "g")


def test_an_outage_of_the_ledger_takes_all_testimonies() -> None:
    run = running()
    all_say(run, missing(run, "c"), SILENT)
    run.lose_ledger()
    run.silent("c")
    run.advance(3.0)
    run.take()
    run.restore_ledger()
    assert is_member(run, "c")
    questions = asked([effect for _, effect in run.take()])
    assert len(questions) == WATCHERS_MAX
    all_say(run, questions, SILENT)
    run.advance(0.1)
    assert not is_member(run, "c")


def test_a_node_of_an_earlier_release_is_never_asked() -> None:
    run = Driver(min=1, max=4)
    for each in "abcd":
        run.attach(each, host=host(each), is_witness=each == "a")
        run.ready(each)
    run.advance(2 * WATCH_AFTER_S)
    assert {e.node.name for _, e in run.take() if isinstance(e, do.Watch)} == {"a"}
    assert set(missing(run, "c")) == {"a"}


def test_a_node_behind_a_proxy_has_no_witness_and_is_none() -> None:
    run = Driver(min=1, max=3)
    for each in "abc":
        run.attach(each, host="" if each == "c" else host(each))
        run.ready(each)
    run.advance(2 * WATCH_AFTER_S)
    assert not missing(run, "c")
    assert set(missing(run, "a")) == {"b"}


def test_each_host_is_watched_from_others_near_and_far() -> None:
    run = running("abcdefghijklmnop")
    told = {e.node.name: e.addresses for _, e in run.take() if isinstance(e, do.Watch)}
    watched = [address.host for each in told.values() for address in each]
    assert sorted(set(watched)) == sorted(host(each) for each in "abcdefghijklmnop")
    assert all(watched.count(each) == WATCHERS_MAX for each in watched)
    for name, addresses in told.items():
        assert host(name) not in {each.host for each in addresses}
    for each in "abcdefghijklmno":  # The host with the next address is near it.
        near = chr(ord(each) + 1)
        assert near in run.run.witnesses.watching.watchers(host(each))


def test_hosts_with_other_labels_are_not_near() -> None:
    run = Driver(min=1, max=1)
    watching = run.run.witnesses.watching
    assert not watching.has_witnesses
    run.attach("a", host=host("a"))
    assert watching.has_witnesses


def test_few_watchers_change_when_a_node_goes() -> None:
    run = running("abcdefghijklmnop")
    watching = run.run.witnesses.watching
    before = {host(each): watching.watchers(host(each)) for each in "abcdefghijklmnop"}
    run.take()
    run.leave("d")
    run.advance(2 * WATCH_AFTER_S)
    changed = [each for each, names in before.items() if watching.watchers(each) != names]
    assert 1 <= len(changed) <= 1 + 2 * WATCHERS_MAX
    told = {e.node.name for _, e in run.take() if isinstance(e, do.Watch)}
    assert len(told) <= 3 * WATCHERS_MAX


def test_a_watcher_is_told_again_when_it_has_resumed() -> None:
    run = running()
    run.take()
    run.disconnect("b")
    run.attach("b", host=host("b"))
    run.advance(2 * WATCH_AFTER_S)
    assert {e.node.name for _, e in run.take() if isinstance(e, do.Watch)} >= {"b"}


def test_a_done_node_is_not_missed() -> None:
    run = running()
    run.done("c")
    assert not missing(run, "c")


def test_a_stranger_does_not_testify() -> None:
    run = running()
    questions = missing(run, "c")
    number = next(iter(questions.values()))
    stranger = next(each for each in NODES if each not in questions and each != "c")
    run.silent("c")
    run.testify(stranger, number, SILENT)
    run.testify("x", number, SILENT)
    run.testify(next(iter(questions)), number + 1, SILENT)
    run.advance(LOOK_S + ANSWER_S + 0.1)
    assert is_member(run, "c")


def test_a_successor_asks_as_well() -> None:
    run = running()
    run.fail_over()
    for each in NODES:
        run.attach(each, host=host(each))
    run.advance(2 * WATCH_AFTER_S)
    all_say(run, missing(run, "c"), SILENT)
    run.silent("c")
    run.advance(0.1)
    assert not is_member(run, "c")


def test_a_question_names_a_host_and_no_port() -> None:
    run = running()
    run.take()
    missing(run, "c")
    assert {e.host for _, e in run.take() if isinstance(e, do.AskWitness)} == {host("c")}


def test_a_zone_is_no_address_for_others() -> None:
    run = Driver(min=1, max=2)
    run.attach("a", host="fe80::1%eth0")
    run.attach("b", host="::ffff:10.0.0.2")
    watching = run.run.witnesses.watching
    assert watching.host_of("a") is None
    assert watching.host_of("b") == "10.0.0.2"
    assert Address("10.0.0.2", 1).host == watching.host_of("b")
