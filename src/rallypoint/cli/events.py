"""`rallypoint events`: what happened to a run, and what happens to it now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer

from rallypoint.cli import answers, api, output, run_locator
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import (
    CoordinatorError,
    RallypointError,
    RunClosedError,
    TokenError,
    UsageError,
)
from rallypoint.settings.values import parse_duration_s
from rallypoint.tokens import Keys
from rallypoint.wire import api_paths

PAGE: Final = 1_000
PAGES_MAX: Final = 100
"""The most pages to read: another program may send pages without end."""
FROM_HEAD: Final = 1_000_000_000
"""As in coordinator/run_events.py, which loads the core."""
AGAIN_S: Final = 1.0
AGAIN_MAX_S: Final = 10.0
"""How long to wait before the coordinator is looked for again, in seconds: the first time, and the
longest. The pause doubles."""

_FAILURE: Final = "worker_failed"
_ENDS: Final = ("broken", "cause", "closed")

Event = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("events")(events)


def events(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with each new event, until the run is closed."),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="DURATION", help="Only the last 90s, 10m or 2h, for example."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON.")
    ] = False,
) -> None:
    """Show what happened to a run: who came and went, each round, and why it ended."""
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    shower = _Shower(as_json, _since_s(since))
    try:
        is_over = _show_pages(where, keys, run_id, shower)
        if follow and not is_over:
            _follow(where, keys, run_id, shower)
    except KeyboardInterrupt:
        pass  # how a follow ends


def _since_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--since {error}") from None


class _Shower:
    """Prints events. `since_s`: leaves out those that are older.

    The time of an event and that of the answer are by clocks of coordinators. If another host saw
    the event, the two may differ (R9), so then this is only about right.
    """

    def __init__(self, as_json: bool, since_s: float | None) -> None:
        self.last_id = ""
        self._as_json = as_json
        self._since_s = since_s
        self._day = ""
        self._from_head: set[str] = set()
        self._problem = ""
        self._round: object = None
        self._last_lines: set[tuple[str, ...]] = set()
        self._failures: set[str] = set()
        """Those of failures in that round, which are on the screen; and the failures in words."""

    def note(self, problem: str) -> None:
        """Say on stderr what is missing, once."""
        if problem != self._problem:
            self._problem = problem
            output.note(problem)

    def show(self, event: Event, shown_at: float) -> None:
        """Print one event, unless it is too old."""
        event_id = str(event.get("id") or "")
        if event.get("seq", 0) >= FROM_HEAD:
            # Its number is no place in the history of the run's coordinator.
            if event_id in self._from_head:
                return
            self._from_head.add(event_id)
        else:
            self.last_id = event_id or self.last_id
        at = event.get("at")
        is_old = self._since_s is not None and isinstance(at, float | int)
        if is_old and float(at or 0.0) < shown_at - (self._since_s or 0.0):
            return
        if self._as_json:
            print(output.as_json(event), flush=True)
            return
        for line in self._lines(event):
            print(line, flush=True)

    def _lines(self, event: Mapping[str, Any]) -> Iterator[str]:
        if event.get("last_lines") or event.get("kind") in (_FAILURE, *_ENDS):
            self._look_at_round(event.get("round"))
        at, text = event.get("at"), output.clean(self._without_repeat(event))
        when = " " * 12
        moment = output.moment_of(at)
        if moment is not None:
            day = f"{moment:%Y-%m-%d}"
            if day != self._day:
                self._day = day
                yield f"-- {day}"
            when = f"{moment:%H:%M:%S}.{moment.microsecond // 1_000:03d}"
        late = " (from the run's head)" if event.get("is_late") else ""
        yield f"{when}  {text}{late}"
        for each in self._new_lines(event):
            yield f"{' ' * 14}| {output.clean(each)}"

    def _look_at_round(self, number: object) -> None:
        if number != self._round:
            self._round, self._last_lines, self._failures = number, set(), set()

    def _without_repeat(self, event: Mapping[str, Any]) -> str:
        """The event in words. The end of a round, its cause and that of the run name a failure.

        They repeat what it was, unless there were several: then its words say which one.
        """
        text, kind = str(event.get("text", "")), event.get("kind")
        if kind == _FAILURE:
            self._failures.add(str(event.get("detail", "")))
        elif kind in _ENDS and len(self._failures) == 1:
            (failure,) = self._failures
            return text.replace(f": {failure}", "", 1) if failure else text
        return text

    def _new_lines(self, event: Mapping[str, Any]) -> tuple[str, ...]:
        """The last lines of the event's failure. Several events of a round have the same ones."""
        lines = tuple(map(str, event.get("last_lines") or ()))
        is_new = lines not in self._last_lines
        self._last_lines.add(lines)
        return lines if is_new else ()


# -- what there is now -----------------------------------------------------------------------------


def _show_pages(where: Endpoint, keys: Keys, run_id: str, shower: _Shower) -> bool:
    """Show all events up to now. Returns whether the run is closed."""
    is_over = False
    for _ in range(PAGES_MAX):
        page = _page(where, keys, run_id, shower.last_id)
        if page.get("missing"):
            count = page["missing"]
            shower.note(f"{count} event{'s are' if count > 1 else ' is'} not kept any more")
        elif page.get("problem"):
            shower.note(str(page["problem"]))
        for event in page["events"]:
            shower.show(event, float(page.get("shown_at") or 0.0))
            if event.get("kind") in ("closed", "began"):  # A closed run may begin again.
                is_over = event["kind"] == "closed"
        if not page.get("more") or not page["events"]:
            break
    return is_over


def known_events(where: Endpoint, keys: Keys, run_id: str) -> Iterator[Event]:
    """All events that are kept of the run, oldest first."""
    last_id = ""
    for _ in range(PAGES_MAX):
        page = _page(where, keys, run_id, last_id)
        yield from page["events"]
        if not page.get("more") or not page["events"]:
            return
        last_id = str(page["events"][-1]["id"])


def _page(where: Endpoint, keys: Keys, run_id: str, last_id: str) -> dict[str, Any]:
    path = f"{api_paths.events_path(run_id)}?limit={PAGE}"
    path += f"&since={last_id}" if last_id else ""

    def ask(at: Endpoint, secret: str) -> dict[str, Any]:
        page = answers.checked(at, api.events(at, secret, path), answers.EventsPage)
        for each in page["events"]:
            answers.checked_event(at, each)
        return page

    if where.kind is not EndpointKind.LEDGER:
        return run_locator.coordinator_of(where, keys, run_id).ask(ask)
    known = run_locator.find(where, keys, run_id, with_events=True)
    if known.owner is not None and known.close is None:
        try:
            return known.owner.ask(ask)
        except (CoordinatorError, api.NoSuchRunError) as error:
            return known.events(f"{error.message}; {error.hint}", last_id)
    return known.events("" if known.close else run_locator.UNOWNED_HINT, last_id)


# -- what comes ------------------------------------------------------------------------------------


def _follow(where: Endpoint, keys: Keys, run_id: str, shower: _Shower) -> None:
    """Show each new event until the run is closed. Goes on at the next coordinator."""
    pause_s = AGAIN_S
    while True:
        try:
            for kind, body in _stream(where, keys, run_id, shower.last_id):
                pause_s = AGAIN_S
                if kind == "missing":
                    shower.note(f"{body.get('count')} events are not kept any more")
                elif "id" in body:
                    shower.show(body, time.time())
                if kind == "closed":
                    return
            is_over = False
        except (api.NoSuchRunError, TokenError):
            raise
        except RallypointError as error:
            # The run is closed, has no coordinator now, or another one: what is known by now?
            is_over = isinstance(error, RunClosedError)
            if not is_over:
                shower.note(error.message)
        try:
            if _show_pages(where, keys, run_id, shower) or is_over:
                return
        except CoordinatorError as error:
            shower.note(error.message)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, AGAIN_MAX_S)


def _stream(
    where: Endpoint, keys: Keys, run_id: str, last_id: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    path = api_paths.events_path(run_id)
    coordinator = run_locator.coordinator_of(where, keys, run_id)

    def ask(at: Endpoint, secret: str) -> Iterator[tuple[str, dict[str, Any]]]:
        # The stream is open when this returns.
        return _checked(at, api.stream(at, secret, path, last_id))

    return coordinator.ask(ask)


def _checked(
    at: Endpoint, messages: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, body in messages:
        yield kind, answers.checked_event(at, body) if "id" in body else body
