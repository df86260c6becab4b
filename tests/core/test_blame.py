"""What failures cost: windows, early failures, rows of the same failure, and takeovers."""

from __future__ import annotations

import math
import time

import msgspec
import pytest

from rallypoint.core.blame import (
    BLAME_BYTES_MAX,
    CHARGES_KEPT,
    NO_BLAME,
    OFFENDERS_MAX,
    Blame,
    Charge,
    KeptBlame,
    Offender,
    fingerprint,
    weight_of,
)
from rallypoint.core.values import Failure, FailureKind, Outcome, Phase, RunSettings
from tests.core.driver import Driver

WINDOW = RunSettings(max_restarts=3, restart_window_s=600.0)


def failure(message: str, code: int | None = 1, kind: str = "exception") -> Failure:
    return Failure(FailureKind(kind), message, rank=3, exit_code=code)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("step 17: loss is nan", "step 4,012: loss is nan"),
        ("no file /data/a/7.bin", "no file /scratch/x"),
        ("at 0x7ffd12ab", "at 0x1"),
        ("peer 10.0.0.7:29500 closed", "peer 10.0.0.19:41233 closed"),
        ("peer [fe80::1]:29500 closed", "peer [2001:db8::7:1]:1 closed"),
        ("node12: ECC error", "node7: ECC error"),
        ("key deadbeef01 is bad", "key 0123456789abcdef is bad"),
    ],
)
def test_a_fingerprint_leaves_out_what_varies(one: str, other: str) -> None:
    assert fingerprint(failure(one)) == fingerprint(failure(other))


def test_a_fingerprint_depends_on_kind_code_and_words_and_not_on_the_rank() -> None:
    known = failure("loss is nan")
    others = [
        failure("loss is inf"),
        failure("loss is nan", code=2),
        failure("loss is nan", kind="communication"),
        Failure(FailureKind.SIGNAL, "loss is nan", signal=9),
    ]
    assert len({fingerprint(each) for each in (known, *others)}) == 5
    assert fingerprint(msgspec.structs.replace(known, rank=8)) == fingerprint(known)


def test_a_fingerprint_is_one_printable_line_of_bounded_length() -> None:
    found = fingerprint(failure("\x1b[31m\n" + "word " * 999))
    assert found.isprintable()
    assert len(found) <= 200


@pytest.mark.parametrize(
    "part", ["a", "ag", "0", "1,", ":", "a:", "0x", "/", "\\ ", "aaaaaaag", "é", "::1 ", " "]
)
def test_the_time_for_a_fingerprint_grows_with_the_text_and_not_faster(part: str) -> None:
    """The text is a stranger's: 4,000 characters cost the coordinator up to 0.4 s once.

    With the square of this length it would be a quarter of an hour, and not a tenth of a second.
    """
    text = (part * 200_000)[:200_000]
    began_s = time.process_time()
    fingerprint(failure(text))
    assert time.process_time() - began_s < 30.0


def test_an_early_failure_counts_double_and_an_unknown_one_once() -> None:
    settings = RunSettings(early_s=30.0)
    assert [weight_of(each, settings) for each in (0.0, 29.9, 30.0, math.inf)] == [2, 2, 1, 1]
    assert weight_of(0.0, RunSettings()) == 1


def test_a_charge_is_forgiven_at_the_end_of_its_window() -> None:
    kept = KeptBlame()
    kept.charge(1, WINDOW, 0.0)
    kept.charge(2, WINDOW, 100.0)
    assert [kept.spent(at_s) for at_s in (599.0, 600.0, 699.0, 700.0)] == [3, 2, 2, 0]


def test_many_charges_are_kept_in_bounded_space_and_none_is_forgiven_early() -> None:
    kept, count = KeptBlame(), 10 * CHARGES_KEPT
    for at in range(count):
        kept.charge(1, WINDOW, float(at) / count)
    assert len(kept.now(count, WINDOW, 1.0).charges) <= CHARGES_KEPT
    assert kept.spent(599.999) == count
    assert kept.spent(601.0) == 0


def test_a_successor_counts_the_seconds_that_were_left_from_its_takeover_on() -> None:
    kept, other = KeptBlame(), KeptBlame()
    kept.charge(2, WINDOW, 0.0)
    kept.failed(failure("x"), msgspec.structs.replace(WINDOW, same_failure=3), 0.0)
    told = kept.now(1, WINDOW, 400.0)
    assert told.charges == (Charge(2, 200.0),)
    other.restore(told, 1, WINDOW, 9_000.0)
    assert other.now(1, WINDOW, 9_000.0) == told
    assert (other.spent(9_199.0), other.spent(9_200.0)) == (2, 0)
    again = msgspec.structs.replace(WINDOW, same_failure=3)
    assert other.failed(failure("x"), again, 9_199.0) == 2


def test_the_same_failure_counts_anew_if_the_program_has_come_further() -> None:
    settings = RunSettings(same_failure=3)

    def times(*steps: int | None, kept: KeptBlame | None = None) -> list[int]:
        blame = kept or KeptBlame()
        return [blame.failed(failure("x"), settings, 0.0, step) for step in steps]

    assert times(100, 100, 100) == [1, 2, 3]
    assert times(100, 200, 200, 300) == [1, 1, 2, 1]
    # A round that ends sooner than one before has not come further, nor has the next one.
    assert times(100, 40, 100) == [1, 2, 3]
    # Without reports nothing is known of progress.
    assert times(None, None, None) == [1, 2, 3]
    assert times(None, 100, None, 200) == [1, 2, 3, 1]
    before = KeptBlame()
    times(100, 100, kept=before)
    after = KeptBlame()
    after.restore(before.now(2, settings, 0.0), 2, settings, 5.0)
    assert times(101, 101, kept=after) == [1, 2]


@pytest.mark.parametrize(("window_s", "later"), [(None, 2), (600.0, 0)])
def test_what_an_older_release_has_charged_counts_once_each(
    window_s: float | None, later: int
) -> None:
    kept = KeptBlame()
    settings = RunSettings(max_restarts=9, restart_window_s=window_s)
    kept.restore(Blame(restarts=1, spent=2, charges=(Charge(2, 5.0),)), 3, settings, 0.0)
    assert kept.spent(1.0) == 4
    assert kept.spent(601.0) == later


def test_a_run_without_these_settings_writes_no_blame() -> None:
    kept = KeptBlame()
    kept.charge(1, RunSettings(max_restarts=3), 0.0)
    assert kept.now(1, RunSettings(max_restarts=3), 0.0) == NO_BLAME
    successor = KeptBlame()
    successor.restore(NO_BLAME, 1, RunSettings(max_restarts=3), 0.0)
    assert successor.spent(0.0) == 1


def test_the_blame_in_a_head_is_bounded() -> None:
    kept = KeptBlame()
    names = [f"{at:04}" + "n" * 200 for at in range(9 * OFFENDERS_MAX)]
    blame = Blame(offenders=tuple(Offender(each, 9, 60.0, 60.0, "x" * 100) for each in names))
    settings = RunSettings(max_restarts_per_node=1)
    kept.restore(blame, 0, settings, 0.0)
    made = kept.now(0, settings, 0.0)
    assert 0 < len(msgspec.msgpack.encode(made)) <= BLAME_BYTES_MAX


def ended(driver: Driver) -> str:
    close = driver.run.close
    assert close is not None
    assert close.outcome is Outcome.FAILED
    return close.reason


def break_by(driver: Driver, message: str, *, code: int | None = 1) -> None:
    """A worker of a fails, and all is ready for the next round."""
    driver.fail("a", message=message, code=code)
    driver.answer("a", "b")
    driver.advance(0.06)
    if driver.phase is not Phase.CLOSED:
        driver.ready("a", "b")


def test_r9_a_takeover_keeps_what_is_spent_and_for_how_long() -> None:
    driver = Driver(min=2, max=2, restarts=1, window=600.0)
    driver.join("a", "b")
    break_by(driver, "x")
    driver.advance(300.0)
    driver.fail_over()
    driver.attach("a", "b")
    # The head was written soon after the charge, so the successor counts nearly all of the window.
    driver.advance(500.0)
    break_by(driver, "y")
    assert "budget (--max-restarts 1) is spent within 10 min" in ended(driver)


def test_r11_a_round_that_was_taken_over_is_not_known_to_be_short() -> None:
    driver = Driver(min=2, max=2, restarts=1, early=30.0)
    driver.join("a", "b")
    driver.fail_over()
    driver.attach("a", "b")
    break_by(driver, "x")
    assert (driver.phase, driver.run.restart_count) == (Phase.ACTIVE, 1)


def test_a_row_of_the_same_failure_survives_a_takeover() -> None:
    driver = Driver(min=2, max=2, restarts=None, same=3)
    driver.join("a", "b")
    for at in range(2):
        break_by(driver, f"shape {at} is wrong")
        driver.fail_over()
        driver.attach("a", "b")
    break_by(driver, "shape 9 is wrong")
    assert "failed in the same way 3 times in a row (--same-failure)" in ended(driver)


def test_another_failure_begins_a_new_row() -> None:
    driver = Driver(min=2, max=2, restarts=None, same=2)
    driver.join("a", "b")
    for message in ("x", "y", "x", "y"):
        break_by(driver, message)
    assert driver.phase is Phase.ACTIVE


def test_an_old_failure_begins_a_new_row_where_old_ones_are_forgiven() -> None:
    driver = Driver(min=2, max=2, restarts=None, same=2, window=60.0)
    driver.join("a", "b")
    break_by(driver, "x")
    driver.advance(61.0)
    break_by(driver, "x")
    assert not driver.run.close
    break_by(driver, "x")
    assert driver.phase is Phase.CLOSED


@pytest.mark.parametrize("is_over", [False, True])
def test_an_exit_code_ends_the_run_also_after_the_verdict(is_over: bool) -> None:
    driver = Driver(min=2, max=2, restarts=None, codes=(2, 78))
    driver.join("a", "b")
    driver.fail("a", message="x", code=1)
    if is_over:
        driver.answer("a", "b")
        driver.advance(0.06)
    driver.fail("b", message="bad config", code=78)
    assert "does not restart after exit code 78" in ended(driver)
    assert driver.run.close is not None
    assert driver.run.close.cause is not None
    assert driver.run.close.cause.nodes == ("b",)


def test_an_exit_code_outranks_the_loss_of_a_node() -> None:
    driver = Driver(min=2, max=3, restarts=None, codes=(2,))
    driver.join("a", "b", "c")
    driver.fail("a", kind="communication", code=1)
    driver.fail("b", message="bad config", code=2)
    driver.die("c")
    assert "exit code 2" in ended(driver)


def test_an_exit_code_that_came_without_a_ledger_ends_the_run_when_it_is_back() -> None:
    driver = Driver(min=2, max=2, restarts=None, codes=(2,))
    driver.join("a", "b")
    driver.lose_ledger()
    driver.fail("a", message="bad config", code=2)
    assert driver.phase is Phase.SUSPENDED
    driver.restore_ledger()
    assert "exit code 2" in ended(driver)


def test_a_successor_ends_a_run_whose_open_case_has_such_an_exit_code() -> None:
    driver = Driver(min=2, max=2, restarts=None, codes=(2,), manual_commit=True)
    driver.join("a", "b")
    driver.commit()
    driver.lose_ledger()
    driver.fail("a", message="bad config", code=2)
    driver.fail_over()
    driver.attach("a", "b")
    driver.ready("a")
    driver.commit()
    assert "exit code 2" in ended(driver)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restart_window_s", 0.0),
        ("early_s", -1.0),
        ("same_failure", 1),
        ("no_restart_exit_codes", (0,)),
        ("no_restart_exit_codes", tuple(range(1, 70))),
        ("max_restarts_per_node", -1),
        ("cooldown_s", 0.0),
        ("cooldown_max_s", 1.0),
    ],
)
def test_settings_are_validated(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        RunSettings(**{field: value})  # type: ignore[arg-type]
