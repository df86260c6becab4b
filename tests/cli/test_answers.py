"""What another program, or another release, answers in a coordinator's place is no traceback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from rallypoint.cli import answers
from rallypoint.cli.main import exit_code_of
from rallypoint.coordinator import status as fields
from rallypoint.errors import ExitCode

pytestmark = pytest.mark.sockets
EVENT = {"id": "1.1", "text": "the run began", "term": 1, "seq": 1, "kind": "began", "at": 1.0}
RUN = {"run_id": "r", "phase": "active", "coordinator": {"host": "h"}, "members": [{"name": "a"}]}


class Stranger:
    """A server that answers every request with `body`."""

    def __init__(self) -> None:
        self.body = b""
        stranger = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(200)
                self.send_header("Content-Length", str(len(stranger.body)))
                self.end_headers()
                self.wfile.write(stranger.body)

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Nothing: stderr is compared."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.where = f"127.0.0.1:{self.server.server_port}"

    def answers(self, body: str, *command: str) -> int:
        """The exit code of a command that gets this answer."""
        self.body = body.encode()
        return exit_code_of([*command, "--endpoint", f"http://{self.where}"])


@pytest.fixture
def stranger(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Stranger()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(30)


def of_events(**changes: Any) -> dict[str, Any]:
    return {"events": [EVENT | changes], "shown_at": 2.0, "more": False, "missing": 0}


@pytest.mark.parametrize(
    ("command", "body", "field"),
    [
        (("status", "r"), RUN | {"members": "x"}, "members"),
        (("status", "r"), RUN | {"members": [{"labels": "x"}]}, "members.0.labels"),
        (("status", "r"), RUN | {"phase": []}, "phase"),
        (("status", "r"), RUN | {"rounds": {"a": 1}}, "rounds"),
        (("status", "r", "--json"), RUN | {"owner": "x"}, "owner"),
        (("wait", "r", "--for", "active", "--timeout", "1"), RUN | {"closed": "x"}, "closed"),
        (("status",), {"runs": [1], "coordinator": {}}, "runs.0"),
        (("status",), {"runs": [{"run_id": True}], "coordinator": {}}, "runs.0.run_id"),
        (("events", "r"), of_events(seq="x"), "seq"),
        (("events", "r"), of_events(id="1\r\nX: y"), "id"),
        (("events", "r"), of_events(last_lines=1), "last_lines"),
        (("events", "r"), of_events() | {"missing": "x"}, "missing"),
        (("events", "r"), of_events() | {"shown_at": []}, "shown_at"),
        (("stacks", "r"), {"nodes": [{"workers": "x"}]}, "nodes.0.workers"),
        (("stacks", "r"), {"silent": 1.5}, "silent"),
    ],
)
def test_an_answer_of_another_form_is_an_error_that_names_the_address_and_the_field(
    stranger: Stranger,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    body: dict[str, Any],
    field: str,
) -> None:
    code = stranger.answers(json.dumps(body), *command)
    said = capsys.readouterr().err
    assert code == ExitCode.COULD_NOT_MEET, said
    assert stranger.where in said
    assert repr(field) in said


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"'])
@pytest.mark.parametrize("command", [("status", "r", "--json"), ("status", "r")])
def test_what_cannot_be_written_again_is_no_json(
    stranger: Stranger, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], value: str
) -> None:
    body = json.dumps(RUN | {"reason": "HERE"}).replace('"HERE"', value)
    assert stranger.answers(body, *command) == ExitCode.COULD_NOT_MEET
    assert stranger.where in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        RUN,
        RUN | {"a new field": [1], "members": [{"name": "a", "new": {}}]},
        RUN | {"members": None, "rounds": None},
        RUN | {"rounds": [{"number": 1, "formed_at": 1e300}]},
    ],
    ids=["few fields", "new fields", "null", "a time that is far away"],
)
def test_what_other_releases_answer_is_shown(stranger: Stranger, body: dict[str, Any]) -> None:
    assert stranger.answers(json.dumps(body), "status", "r") == ExitCode.DONE


def test_a_terminal_obeys_no_name_in_json(
    stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[31m\x7f\x9b2J\u202e\U000e0001 \u00e9"
    for body, command in (
        (RUN | {"members": [{"name": name}]}, ("status", "r", "--json")),
        (of_events(text=name), ("events", "r", "--json")),
    ):
        assert stranger.answers(json.dumps(body), *command) == ExitCode.DONE
        [line] = capsys.readouterr().out.splitlines()
        assert line.isprintable()
        assert name in json.dumps(json.loads(line), ensure_ascii=False).replace("\\u001b", "\x1b")
        assert "\u00e9" in line


def test_a_run_without_a_name_is_told_at_once(
    stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("status",), ("events",), ("close",), ("stacks",)):
        assert stranger.answers("{}", *command, "") == ExitCode.USAGE
        assert "the id of the run is empty" in capsys.readouterr().err


def test_the_coordinators_own_answer_fits() -> None:
    unknown = json.loads(msgspec.json.encode(fields.unknown("r", "x", "h")))
    where: Any = None
    assert answers.checked(where, unknown, fields.RunStatus) is unknown
