"""Whether workers start warm: what follows from each word of the preloader. No processes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch.agent_actions import Start
from rallypoint.launch.warm_starts import (
    PAUSE_S,
    READS,
    TRIES_MAX,
    Preload,
    WarmStarts,
    Warmth,
)

NAMED = Preload(modules=("torch", "my.module"))
LEARNED = Preload(learn_after_s=60.0)
READY = on.PreloadReady(1_000, 1.5, 2**28)
DIED = on.PreloaderEnded("signal 9")


def refused(*modules: str) -> on.PreloadRefused:
    return on.PreloadRefused((on.Problem(modules, "it starts a thread of Python", "Traceback"),))


def said(actions: list[do.Action]) -> str:
    return "\n".join(each.text for each in actions if isinstance(each, do.Say))


def started(actions: list[do.Action]) -> list[tuple[str, ...]]:
    return [each.modules for each in actions if isinstance(each, do.StartPreloader)]


def learning(now_s: float = 0.0) -> WarmStarts:
    """In the first round, whose first worker is watched."""
    warm = WarmStarts(LEARNED)
    assert warm.prepare() == []
    assert warm.how_to_start(now_s) is Start.WATCHED
    return warm


def read(warm: WarmStarts, now_s: float, *modules: str, over: bool = False) -> list[do.Action]:
    """The watched worker has told these by now."""
    assert warm.decide(now_s, is_round_over=over) == [do.ReadModules()]
    return warm.step(on.ModulesRead(modules), now_s)


def test_without_the_option_nothing_happens() -> None:
    warm = WarmStarts(None)
    assert warm.prepare() == []
    assert warm.how_to_start(0.0) is Start.COLD
    assert warm.decide(1e9, is_round_over=True) == []
    assert warm.due_s is None


def test_where_workers_cannot_be_warm_the_reason_is_said_once() -> None:
    warm = WarmStarts(Preload(modules=("torch",), problem="this system is not Linux"))
    assert said(warm.prepare()) == (
        "warning: --preload: the workers start cold: this system is not Linux"
    )
    assert warm.how_to_start(0.0) is Start.COLD


def test_named_modules_are_imported_at_once_and_the_first_start_waits_for_them() -> None:
    warm = WarmStarts(NAMED)
    assert started(warm.prepare()) == [("torch", "my.module")]
    assert warm.how_to_start(0.0) is Start.WHEN_READY
    assert "workers start warm" in said(warm.step(READY, 2.0))
    assert warm.how_to_start(3.0) is Start.WARM


def test_no_other_start_waits_for_a_preloader() -> None:
    warm = WarmStarts(NAMED)
    warm.prepare()
    warm.how_to_start(0.0)
    assert warm.how_to_start(1.0) is Start.COLD


def test_what_a_worker_has_imported_by_the_end_of_its_round_is_learned() -> None:
    warm = learning()
    assert warm.decide(1.0, is_round_over=False) == []
    actions = read(warm, 2.0, "numpy", "torch", over=True)
    assert started(actions) == [("numpy", "torch")]
    assert warm.how_to_start(3.0) is Start.COLD  # it is not ready yet
    warm.step(READY, 4.0)
    assert warm.how_to_start(5.0) is Start.WARM


def test_a_worker_that_still_imports_after_the_time_is_not_learned_yet() -> None:
    warm = learning()
    assert warm.due_s == 60.0 - 60.0 / READS
    assert started(read(warm, 45.0, "numpy")) == []
    assert started(read(warm, 60.0, "numpy", "torch")) == []
    assert warm.due_s == 75.0
    assert started(read(warm, 75.0, "numpy", "torch")) == [("numpy", "torch")]


def test_a_round_without_installed_modules_teaches_nothing_and_the_next_one_is_watched() -> None:
    warm = learning()
    assert started(read(warm, 45.0)) == []
    assert started(read(warm, 60.0)) == []
    assert read(warm, 61.0, over=True) == []
    assert warm.how_to_start(70.0) is Start.WATCHED


def test_a_list_of_the_user_is_refused_as_a_whole_with_the_traceback() -> None:
    warm = WarmStarts(NAMED)
    warm.prepare()
    actions = warm.step(refused("my.module"), 1.0)
    assert "my.module cannot be preloaded: it starts a thread of Python\nTraceback" in said(actions)
    assert "the workers start cold" in said(actions)
    assert started(actions) == []
    assert warm.state is Warmth.OFF
    assert warm.how_to_start(2.0) is Start.COLD


def test_a_list_that_was_learned_goes_on_without_the_refused_modules() -> None:
    warm = learning()
    read(warm, 2.0, "torch", "a", "b", over=True)
    actions = warm.step(refused("a", "b"), 3.0)
    assert started(actions) == [("torch",)]
    assert "Traceback" not in said(actions)
    actions = warm.step(refused("torch"), 4.0)
    assert started(actions) == []
    assert warm.state is Warmth.OFF


def test_a_list_is_not_made_shorter_for_ever() -> None:
    warm = learning()
    names = [f"m{number}" for number in range(2 * TRIES_MAX)]
    read(warm, 2.0, *names, over=True)
    for name in names[:TRIES_MAX]:
        assert warm.state is Warmth.IMPORTING
        warm.step(refused(name), 3.0)
    assert warm.state is Warmth.OFF


def test_a_canary_names_no_module_so_that_the_workers_start_cold() -> None:
    warm = learning()
    read(warm, 2.0, "torch", over=True)
    assert started(warm.step(refused(), 3.0)) == []
    assert warm.state is Warmth.OFF


def test_a_preloader_that_dies_is_started_again_after_growing_pauses() -> None:
    warm = WarmStarts(NAMED)
    warm.prepare()
    warm.step(READY, 0.0)
    now_s, pauses = 10.0, []
    for _ in range(3):
        assert "signal 9" in said(warm.step(DIED, now_s))
        assert warm.how_to_start(now_s) is Start.COLD
        assert warm.due_s is not None
        pauses.append(warm.due_s - now_s)
        assert warm.decide(warm.due_s - 0.01, is_round_over=False) == []
        now_s = warm.due_s
        assert started(warm.decide(now_s, is_round_over=False)) == [NAMED.modules]
        warm.step(READY, now_s)
    assert pauses == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S]


def test_words_that_come_late_change_nothing() -> None:
    warm = WarmStarts(NAMED)
    warm.prepare()
    warm.step(refused("torch"), 1.0)
    for event in (READY, DIED, refused("a"), on.ModulesRead(("a",))):
        assert warm.step(event, 2.0) == []
    assert warm.state is Warmth.OFF


events = st.sampled_from(
    [READY, DIED, refused("a"), refused(), on.ModulesRead(()), on.ModulesRead(("a", "b"))]
)


@given(
    st.sampled_from([NAMED, LEARNED]),
    st.lists(st.one_of(events, st.sampled_from(["start", "over", "time"])), max_size=30),
)
def test_a_start_is_warm_only_while_a_preloader_is_ready(
    preload: Preload, happened: list[object]
) -> None:
    warm = WarmStarts(preload)
    now_s, is_ready, is_importing = 0.0, False, False
    actions = warm.prepare()
    for each in happened:
        for action in actions:
            is_importing = is_importing or isinstance(action, do.StartPreloader)
        now_s += 1.0
        match each:
            case "start":
                start, actions = warm.how_to_start(now_s), []
                assert (start is Start.WARM) == is_ready
            case "over" | "time":
                actions = warm.decide(now_s, is_round_over=each == "over")
            case on.PreloadReady() | on.PreloadRefused() | on.PreloaderEnded() if not (
                is_importing or is_ready
            ):
                continue  # there is no preloader that could tell it
            case on.PreloadReady() | on.PreloadRefused() if is_ready:
                continue
            case on.PreloadReady() | on.PreloadRefused() | on.PreloaderEnded():
                is_ready, is_importing = isinstance(each, on.PreloadReady), False
                actions = warm.step(each, now_s)
            case on.ModulesRead():
                actions = warm.step(each, now_s)
        assert warm.due_s is None or warm.due_s >= now_s - 60.0
