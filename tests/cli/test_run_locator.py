"""Which address of an endpoint a command asks about a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rallypoint.cli.api import NoSuchRunError
from rallypoint.cli.run_locator import coordinator_of
from rallypoint.endpoints import Endpoint, parse_endpoint
from rallypoint.errors import NotACoordinatorError, UnreachableError
from rallypoint.tokens import NONE, Keys


def answering(answers: dict[str, str | Exception], asked: list[str]) -> Callable[..., str]:
    def question(endpoint: Endpoint, token: str) -> str:
        asked.append(f"{endpoint.host}:{endpoint.port}")
        found = answers.get(asked[-1], UnreachableError(f"nothing listens at {asked[-1]}"))
        if isinstance(found, Exception):
            raise found
        return found

    return question


def test_each_address_is_asked_until_one_has_the_run() -> None:
    asked: list[str] = []
    endpoint = parse_endpoint("n1,n2").over(29400, 29403)
    answers: dict[str, str | Exception] = {
        "n1:29400": NoSuchRunError("no such run"),
        "n2:29400": NotACoordinatorError("it is a web server"),
        "n2:29401": "the run",
    }
    client = coordinator_of(endpoint, Keys(NONE), "job-42")
    assert client.ask(answering(answers, asked)) == "the run"
    assert asked == ["n1:29400", "n2:29400", "n1:29401", "n2:29401"]


def test_the_error_is_that_of_an_address_that_has_answered() -> None:
    endpoint = parse_endpoint("n1,n2,n3")
    client = coordinator_of(endpoint, Keys(NONE), "job-42")
    with pytest.raises(NoSuchRunError):
        client.ask(answering({"n2:29400": NoSuchRunError("no such run")}, []))
    with pytest.raises(UnreachableError, match="n3:29400"):
        client.ask(answering({}, []))


def test_many_hosts_are_not_all_asked() -> None:
    asked: list[str] = []
    endpoint = parse_endpoint(",".join(f"n{number}" for number in range(1_000)))
    with pytest.raises(UnreachableError):
        coordinator_of(endpoint, Keys(NONE), "job-42").ask(answering({}, asked))
    assert len(asked) == 64
