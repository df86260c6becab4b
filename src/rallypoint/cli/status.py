"""`rallypoint status`: the state of a coordinator's runs, and why they wait."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final

import msgspec
import typer

from rallypoint.cli import answers, api, output, run_locator, status_view
from rallypoint.cli.common import EndpointOption, TokenFileOption, endpoint_of, keys_of
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import CoordinatorError, RallypointError, TokenError
from rallypoint.tokens import Keys

WATCH_EVERY_S: Final = 1.0
MEMBERS_SHOWN: Final = 50
MEMBERS_IN_JSON: Final = 1_000
"""The number of members that a coordinator lists by default."""
UNOWNED: Final = f"no coordinator: {run_locator.UNOWNED_HINT}"

Status = dict[str, Any]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's id; if left out, all runs, or the only one."),
    ] = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keep showing it: full screen on a terminal, else at each change."
        ),
    ] = False,
    members: Annotated[
        int | None,
        typer.Option("--members", metavar="N", min=0, help="Show at most N members of a run."),
    ] = None,
) -> None:
    """Show the runs of a coordinator, or one run: members, ranks, reason to wait, last rounds."""
    where = endpoint_of(endpoint)
    keys = keys_of(where, token_file)
    shown = MEMBERS_SHOWN if members is None and not as_json else members

    def ask() -> Answer:
        if run_id is None:
            return Answer(_all_runs(where, keys, as_json, shown))
        return one_run(where, keys, run_id, shown)

    if watch:
        _watch(ask, as_json, until_ended=run_id is not None)
        return
    answer = ask()
    if as_json or answer.is_known:
        _print(answer.status, as_json)
    if answer.error is not None:
        raise answer.error


class Answer(msgspec.Struct, frozen=True):
    """The status to show. `error`: why no coordinator has answered about the run, if none has."""

    status: Status
    error: RallypointError | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is such a run."""
        return not isinstance(self.error, api.NoSuchRunError)


def one_run(where: Endpoint, keys: Keys, run_id: str, shown: int | None) -> Answer:
    """The run with all fields, even if it is only in the ledger, or unknown."""
    # Imported only here, because it loads the core.
    from rallypoint.coordinator import status as fields

    try:
        if where.kind is EndpointKind.LEDGER:
            answer = _run_of_ledger(where, keys, run_id, shown)
        else:
            asked = run_locator.coordinator_of(where, keys, run_id)
            answer = Answer(asked.ask(_question(run_id, shown)))
    except api.NoSuchRunError as error:
        unknown = fields.unknown(run_id, error.message, socket.gethostname())
        answer = Answer(msgspec.to_builtins(unknown), error)
    status, problem = fields.filled(answer.status, fields.RunStatus), answer.error
    if problem is None and status["phase"] in (fields.UNOWNED, fields.UNREACHABLE):
        # The answer is a replica's, from the ledger.
        is_unowned = status["phase"] == fields.UNOWNED
        why = "has no coordinator now" if is_unowned else "its coordinator does not answer"
        problem = CoordinatorError(f"run {run_id!r} {why}", hint=run_locator.UNOWNED_HINT)
    return Answer(status, problem)


def _question(run_id: str, shown: int | None) -> Callable[[Endpoint, str], Status]:
    from rallypoint.coordinator import status as fields

    def ask(at: Endpoint, secret: str) -> Status:
        return answers.checked(at, api.run(at, secret, run_id, shown), fields.RunStatus)

    return ask


def _run_of_ledger(where: Endpoint, keys: Keys, run_id: str, shown: int | None) -> Answer:
    known = run_locator.find(where, keys, run_id, MEMBERS_IN_JSON if shown is None else shown)
    if known.close is not None:  # The coordinator that closed it may have ended.
        return Answer(known.status(""))
    try:
        owner = run_locator.owner_of(known)
        return Answer(owner.ask(_question(run_id, shown)))
    except (CoordinatorError, api.NoSuchRunError) as error:
        if isinstance(error, TokenError):
            raise
        hint = f"; {error.hint}" if error.hint else ""
        problem = CoordinatorError(error.message, hint=error.hint)
        return Answer(known.status(f"{error.message}{hint}"), problem)


def _all_runs(where: Endpoint, keys: Keys, as_json: bool, shown: int | None) -> Status:
    """All runs of these coordinators. For people, a single run is shown in more detail."""
    # Imported only here, because it loads the core.
    from rallypoint.coordinator import status as fields

    asked, known = run_locator.coordinators(where, keys)
    is_ledger = where.kind is EndpointKind.LEDGER
    told: list[Status] = []
    problems: dict[str, str] = {}

    def ask(at: Endpoint, secret: str) -> Status:
        return answers.checked(at, api.runs(at, secret, only_own=is_ledger), fields.RunList)

    for owner in asked:
        try:
            told.append(owner.ask(ask))
        except CoordinatorError as error:
            if not is_ledger or isinstance(error, TokenError):
                raise
            problems[owner.process] = f"{error.message}; {error.hint}"
    runs = {str(run.get("run_id")): run for each in told for run in each["runs"]}
    others = {
        each.run_id: each.status(problems.get(each.owner.process if each.owner else "", UNOWNED))
        for each in known
        if each.run_id not in runs
    }
    if len(runs) == 1 and not others and not as_json:
        return one_run(where, keys, next(iter(runs)), shown).status
    coordinator = told[0]["coordinator"] if told else None
    lines = [fields.filled(each, fields.RunSummary) for each in (*runs.values(), *others.values())]
    problem = next((each["problem"] for each in told if each.get("problem")), None)
    return {"coordinator": coordinator, "runs": lines, "problem": problem, "next": None}


def _print(status: Status, as_json: bool) -> None:
    if as_json:
        output.print_json(status)
    else:
        output.show(*status_view.draw(status))


def _watch(ask: Callable[[], Answer], as_json: bool, *, until_ended: bool) -> None:
    """Watch until Ctrl-C or, if `until_ended`, until the shown run is over."""
    try:
        if sys.stdout.isatty() and not as_json:
            # Imported only here, because it loads rich.
            from rallypoint.cli import watching

            seconds = _each_second(ask, until_ended, pause_s=0.0)
            watching.watch(seconds, status_view.draw, status_view.order_name, WATCH_EVERY_S)
        else:
            seconds = _each_second(ask, until_ended, pause_s=WATCH_EVERY_S)
            _watch_in_blocks(seconds, as_json)
    except KeyboardInterrupt:
        pass  # how a watch ends


def _watch_in_blocks(seconds: Iterator[Status], as_json: bool) -> None:
    """Print a block, or a line of JSON, whenever something besides a time has changed."""
    last: object = None
    for status in seconds:
        key = status_view.key(status)
        if key == last:
            continue
        if not as_json:
            # A person reads these blocks in a log, where each needs its time.
            if last is not None:
                print()
            print(time.strftime("-- %Y-%m-%d %H:%M:%S"))
        last = key
        _print(status, as_json)


def _each_second(
    ask: Callable[[], Answer], until_ended: bool, *, pause_s: float
) -> Iterator[Status]:
    while True:
        answer = ask()
        if not answer.is_known and answer.error is not None:
            raise answer.error
        status = answer.status
        yield status
        if until_ended and status_view.has_ended(status):
            return
        time.sleep(pause_s)
