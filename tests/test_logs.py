"""What other machines write cannot move a cursor, forge a line, or fill a log."""

from __future__ import annotations

import json
import logging

import pytest

from rallypoint import logs
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.values import Failure, FailureKind, Outcome
from rallypoint.errors import UsageError
from rallypoint.wire import messages as wire
from tests.coordinator.peers import raw
from tests.loops import BOOTSTRAP, opened, run_clean, served, until

EVIL = "bye\n2026-01-01 INFO run payroll closed\x1b]0;owned\x07\x1b[2J\x1b[31m\u202ex\r\x9bY\u2028z"


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    shown = [logs.CleanFormatter("%(levelname)s %(message)s").format(r) for r in caplog.records]
    plain = [logging.Formatter("%(levelname)s %(message)s").format(r) for r in caplog.records]
    return shown + plain


@pytest.mark.parametrize(
    "log",
    [
        lambda logger: logger.warning("node %s left", EVIL),
        lambda logger: logger.warning("node %r left", EVIL),
        lambda logger: logger.warning("node %(name)s left", {"name": EVIL}),
        lambda logger: logger.warning("it said: %s", ValueError(EVIL)),
        lambda logger: logger.warning("it said: %s", UsageError(EVIL, hint=EVIL)),
        lambda logger: logger.warning(f"node {EVIL} left"),
        lambda logger: logger.warning("%s and %d and %.1f", EVIL, 3, 0.5),
        lambda logger: logger.warning("failed", exc_info=ValueError(EVIL)),
    ],
)
def test_a_record_is_one_line_without_control_characters(log, caplog):
    logger = logs.tidy("rallypoint.coordinator")
    with caplog.at_level(logging.INFO):
        log(logger)
    lines = lines_of(caplog)
    assert lines
    for text in lines:
        first, *more = text.split("\n")
        assert first.isprintable()
        assert all(line.startswith("  ") and line.isprintable() for line in more)


def test_tidying_twice_cleans_once(caplog):
    logger = logs.tidy("rallypoint.coordinator")
    before = list(logger.filters)
    assert logs.tidy("rallypoint.coordinator").filters == before


def test_our_own_line_breaks_stay():
    logs.tidy("rallypoint.rendezvous", lines=True)
    record = logging.makeLogRecord({"msg": "%s", "args": ("a\n  b\x1b",)})
    assert logging.getLogger("rallypoint.rendezvous").filter(record)
    assert record.getMessage() == "a\n  b\\x1b"


@pytest.mark.sockets
def test_texts_of_a_node_are_kept_and_logged_without_control_characters(caplog):
    """In the log, in the history that the API shows, and in messages to other nodes."""

    async def main() -> None:
        async with served() as (server, port), opened(f"http://127.0.0.1:{port}") as a:
            assert await a.next_round(BOOTSTRAP) is not None
            run = server.coordinator.runs["run"]
            failure = Failure(FailureKind.EXCEPTION, EVIL, rank=0, last_lines=("ok", EVIL))
            a.failed(failure)
            await until(lambda: run.history.rounds[-1].ended, "the round goes on")
            await a.close_run(Outcome.FAILED, EVIL, 10.0)
            close = run.membership.close
            assert close is not None
            assert close.reason.isprintable()
            texts = [each.ended for each in run.history.rounds]
            assert all(text.isprintable() for text in texts)
            cause = close.cause
            if cause is not None and cause.failure is not None:
                assert all(line.isprintable() for line in cause.failure.last_lines)

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert "bye" in caplog.text
    assert all(line.isprintable() for text in lines_of(caplog) for line in text.split("\n"))
    assert not any(line.startswith("2026") for t in lines_of(caplog) for line in t.split("\n"))


@pytest.mark.sockets
def test_a_connection_without_a_token_causes_few_lines_and_no_traceback(caplog):
    async def main() -> None:
        async with served(CoordinatorConfig(token="correct-horse")) as (_, port):
            for _ in range(40):
                await raw(port, b"\x1b[31m\r\n\r\n")
                await raw(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert 1 <= len(caplog.records) <= 12
    assert all(record.exc_info is None and not record.exc_text for record in caplog.records)
    assert all(line.isprintable() for line in lines_of(caplog))


@pytest.mark.sockets
def test_refused_logins_are_logged_with_their_address_and_limited(caplog):
    secret, wrong = "correct-horse", "wrong-donkey"

    async def main() -> None:
        async with served(CoordinatorConfig(token=secret)) as (_, port):
            for path in (wire.ATTACH_PATH, "/api/v1/runs", "/nowhere"):
                head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {wrong}\r\n\r\n"
                for _ in range(15):
                    await raw(port, head.encode())
            await raw(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")

    with caplog.at_level(logging.INFO):
        run_clean(main)
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert 1 <= len(refused) <= 12
    assert "127.0.0.1" in refused[0]
    assert "the token is wrong" in refused[0]
    assert secret not in caplog.text
    assert wrong not in caplog.text


# -- fields and forms ------------------------------------------------------------------------------


def test_a_record_about_a_run_has_the_run(caplog):
    logger = logs.tidy("rallypoint.coordinator")
    with caplog.at_level(logging.INFO):
        logger.info("run %s: round %d", "job", 3)
        logger.info("run %s: ended", "job", extra=logs.fields("job", 2, 3))
        logger.info("the ledger answers again")
    places = [(each.run, each.term, each.round, each.node) for each in caplog.records]
    assert places == [("job", None, None, None), ("job", 2, 3, None), (None, None, None, None)]


@pytest.mark.sockets
def test_records_of_a_program_carry_its_run_and_node(caplog):
    """A native program configures its own logging; the fields are attributes of the records."""

    async def main() -> None:
        async with served() as (server, port), opened(f"http://127.0.0.1:{port}") as a:
            assert await a.next_round(BOOTSTRAP) is not None
            logging.getLogger("rallypoint.client").info("hello")
            run = server.coordinator.runs["run"]
            await a.close_run(Outcome.SUCCEEDED, "done", 10.0)
            await until(lambda: run.is_closed, "the run is open")

    with caplog.at_level(logging.INFO):
        run_clean(main)
    [hello] = [each for each in caplog.records if each.getMessage() == "hello"]
    assert (hello.run, hello.term, hello.round) == ("run", 1, 1)
    assert hello.node
    closed = next(
        each for each in caplog.records if "run run: the run was closed" in each.getMessage()
    )
    assert (closed.run, closed.term, closed.round) == ("run", 1, 1)


def test_json_has_every_field_and_the_exception_in_one_line():
    record = logging.makeLogRecord({"msg": "it failed", "levelname": "ERROR", "name": "x"})
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = logs.JsonFormatter().format(record)
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert list(found) == [
        *("time", "level", "run", "term", "round", "node", "message", "hint", "event"),
        *("logger", "exception"),
    ]
    assert found["exception"]["type"] == "ValueError"
    assert "Traceback" in found["exception"]["traceback"]
    assert all(each.isprintable() for each in found["exception"]["message"].split("\n"))


def test_text_has_the_known_fields():
    record = logging.makeLogRecord(
        {"msg": "run %s: round %d", "args": ("job", 3), "levelname": "INFO", "name": "x"}
    )
    logs.locate(record, logs.Place("job", "n1", lambda: (2, 0)))
    assert logs.TextFormatter().format(record).endswith(" INFO [term=2 node=n1] run job: round 3")
