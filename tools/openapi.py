"""Writes docs/openapi.json: the HTTP API of a coordinator, as OpenAPI 3.1.

    python -m tools.openapi

The paths are those of the table of rights (coordinator/guard.py). The shapes of answers are those
of the classes from which the coordinator makes them. What each path is for is here.
tests/coordinator/test_openapi.py compares the result with a running coordinator.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from rallypoint.coordinator import actions_api, events_api, leases_api, status
from rallypoint.coordinator.guard import NEEDS, RUN
from rallypoint.security.roles import RIGHTS, Right
from rallypoint.wire import api_paths
from rallypoint.wire import messages as wire

PAGE: Final = Path(__file__).parents[1] / "docs" / "openapi.json"
REF: Final = "#/components/schemas/{name}"

ABOUT: Final = """\
The HTTP API of `rallypoint serve`, and of any coordinator that a node hosts. Durations end with
`_s` and are in seconds. Times of day end with `_at`: seconds since 1970 by the clock of the host
that is named beside them. An unknown value is null. A later release may add fields, paths and
values of texts: ignore what you do not know.

docs/status.md and docs/events.md of the repository describe the fields, docs/security.md roles."""

SUMMARIES: Final = {
    ("GET", "/healthz"): "Whether the process serves: a liveness probe",
    ("GET", "/readyz"): "Whether the coordinator may decide: a readiness probe",
    ("GET", "/"): "The web page",
    ("GET", f"{api_paths.PAGE}{{name}}"): "A file of the web page",
    ("GET", "/metrics"): "Metrics in the formats of Prometheus and OpenMetrics",
    ("GET", wire.ATTACH_PATH): "A node attaches here by WebSocket: see docs/protocol.md",
    ("GET", api_paths.ME): "What the token of the request may do",
    ("GET", api_paths.COORDINATORS): "The coordinators of the ledger, and the age of their leases",
    ("GET", api_paths.RUNS): "All runs, a page at a time",
    ("GET", RUN): "One run in detail",
    ("GET", f"{RUN}/events"): "The events of a run, as a page or as a stream",
    ("POST", f"{RUN}/close"): "End a run for all its nodes",
    ("POST", f"{RUN}/drain"): "Ask a node to leave in order",
    ("POST", f"{RUN}/evict"): "Take a node out, and keep its name out of the run",
    ("POST", f"{RUN}/admit"): "Lift the eviction of a node",
    ("POST", f"{RUN}/scale"): "Change how many nodes the run has",
    ("POST", f"{RUN}/stacks"): "Where the workers of the round stand",
}
QUERY: Final[dict[tuple[str, str], dict[str, tuple[dict[str, Any], str]]]] = {
    ("GET", api_paths.RUNS): {
        "limit": ({"type": "integer", "minimum": 1}, "the most runs of an answer"),
        "after": ({"type": "string"}, "`next` of the page before"),
    },
    ("GET", RUN): {
        "members": ({"type": "integer", "minimum": 0}, "the most members of the answer"),
    },
    ("GET", f"{RUN}/events"): {
        "since": ({"type": "string"}, "`next` of an answer: events after that place"),
        "limit": ({"type": "integer", "minimum": 1}, "the most events of an answer"),
        "last": ({"type": "integer", "minimum": 1}, "the newest events instead, so many"),
    },
}
TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
FILE: Final = {"schema": {"type": "string"}}
BODIES: Final = {action.name: action.body for action in actions_api.ACTIONS}
ERRORS: Final = {
    400: "The request cannot be read",
    401: "The token is missing or is not accepted",
    403: "The token's role, or its runs, do not suffice; or a web page of another site asks",
    404: "There is no such run, node or file: `nearest` has the names that are most like it",
    408: "The body did not come in time",
    409: "The run is over, or several nodes are meant, or this cannot be done to this node",
    421: "A coordinator without a token was called by a name that is not its machine's",
    426: "This path is for a WebSocket",
    429: "Too many wrong tokens came from this address: wait `Retry-After` seconds",
    503: "The ledger or the run's coordinator does not answer, or this one is overloaded",
}


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    for (method, path), right in NEEDS.items():
        paths.setdefault(path, {})[method.lower()] = operation(method, path, right)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Rallypoint coordinator",
            "version": "1",
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "https://localhost:29400"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token, up to and without a host's identity. A client's "
                    "certificate may take its place; a coordinator without a token needs none.",
                }
            },
            "schemas": schemas(),
        },
    }


def operation(method: str, path: str, right: Right) -> dict[str, Any]:
    """One method of a path."""
    made: dict[str, Any] = {
        "operationId": name_of(method, path),
        "summary": SUMMARIES[method, path],
        "responses": responses(method, path, right),
    }
    if right is Right.NOTHING:
        made["security"] = []
    else:
        roles = sorted(role.value for role, rights in RIGHTS.items() if right in rights)
        made["description"] = f"For the roles {', '.join(roles)}."
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ] + [
        {"name": name, "in": "query", "schema": schema, "description": about}
        for name, (schema, about) in QUERY.get((method, path), {}).items()
    ]
    if parameters:
        made["parameters"] = parameters
    action = path.rpartition("/")[2]
    if method == "POST":
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{action}_body"}}}
        made["requestBody"] = {"required": BODIES[action].__name__ != "_Body", "content": body}
    return made


def name_of(method: str, path: str) -> str:
    """A name for clients that are generated."""
    words = re.findall(r"\w+", path.removeprefix("/api/v1").replace("{run_id}", "run"))
    return "_".join([method.lower(), *words])


def responses(method: str, path: str, right: Right) -> dict[str, Any]:
    """All answers of a method, by their status."""
    found: dict[str, Any] = {}
    if path == wire.ATTACH_PATH:
        found["101"] = {"description": "The connection is a WebSocket now"}
    else:
        found["200"] = {"description": "OK", "content": content(path)}
    codes = {403, 421}
    if right is not Right.NOTHING:
        codes |= {401, 429, 503}
    if "{run_id}" in path:
        codes |= {400, 404}
    if path == api_paths.RUNS:
        codes |= {400}
    if path.startswith(api_paths.PAGE):
        codes |= {404}
    if path == wire.ATTACH_PATH:
        codes |= {400, 426}
    if method == "POST":
        codes |= {408, 409}
    if path in ("/healthz", "/readyz"):
        codes -= {421}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for code in sorted(codes):
        found[str(code)] = {"description": ERRORS[code], "content": error}
    if path == "/readyz":
        found["503"] = {"description": "The ledger has not renewed the lease", "content": TEXT}
    if path == "/metrics":
        found["501"] = {"description": "prometheus-client is not installed", "content": error}
    return found


def content(path: str) -> dict[str, Any]:
    """The content of an answer 200."""

    def of(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    if path.endswith("/events"):
        return of("EventPage") | {"text/event-stream": {"schema": {"type": "string"}}}
    if path.endswith(tuple(f"/{name}" for name in BODIES)):
        return of(path.rpartition("/")[2] + "_answer")
    named = {
        api_paths.ME: "Me",
        api_paths.COORDINATORS: "LeaseList",
        api_paths.RUNS: "RunList",
        RUN: "RunStatus",
    }
    if path in named:
        return of(named[path])
    if path == "/":
        return {"text/html": FILE}
    if path.startswith(api_paths.PAGE):
        return dict.fromkeys(("text/html", "text/css", "text/javascript", "image/svg+xml"), FILE)
    return TEXT


def schemas() -> dict[str, Any]:
    """The shapes of bodies and answers."""
    kinds = (status.RunStatus, status.RunList, leases_api.LeaseList, events_api.EventPage)
    _, found = msgspec.json.schema_components(kinds, ref_template=REF)
    _, bodies = msgspec.json.schema_components(tuple(BODIES.values()), ref_template=REF)
    for name, body in BODIES.items():
        found[f"{name}_body"] = bodies[body.__name__]
    found |= ANSWERS
    return {name: cleaned(schema) for name, schema in sorted(found.items())}


def cleaned(schema: Any) -> Any:
    """Without what is only true of this release: that there are no other fields."""
    if isinstance(schema, dict):
        return {
            key: cleaned(value)
            for key, value in schema.items()
            if not (key == "additionalProperties" and value is False) and key != "title"
        }
    return [cleaned(each) for each in schema] if isinstance(schema, list) else schema


def _object(needed: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = needed | (more or {})
    return {"type": "object", "properties": properties, "required": list(needed)}


_TEXT: Final = {"type": "string"}
_YES_NO: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_COUNT: Final = {"type": "integer", "minimum": 0}
_NODE: Final = {"run_id": _TEXT, "node": _TEXT}
_WORKERS: Final = {
    "type": "array",
    "items": _object(
        {
            "rank": _COUNT,
            "local_rank": _COUNT,
            "state": {**_TEXT, "description": "of a frozen process; empty for any other"},
            "place": _TEXT,
            "is_waiting": {**_YES_NO, "description": "it waits for other workers"},
            "text": {**_TEXT, "description": "its stacks"},
            "step": {"type": ["integer", "null"]},
            "source": {**_TEXT, "description": "faulthandler, py-spy, /proc or its own process"},
        }
    ),
}
ANSWERS: Final[dict[str, Any]] = {
    "Error": _object(
        {"error": _TEXT, "hint": _TEXT},
        {
            "reason": {**_TEXT, "description": "why a token does not suffice, such as role or run"},
            "nearest": {**_TEXTS, "description": "the known names that are most like this one"},
            "nodes": {**_TEXTS, "description": "the nodes that may be meant"},
            "fingerprint": {**_TEXT, "description": "of the coordinator's first token"},
            "origin": {**_TEXT, "description": "where the coordinator has its token from"},
        },
    ),
    "Me": _object(
        {
            "id": _TEXT,
            "roles": _TEXTS,
            "rights": _TEXTS,
            "runs": _TEXTS,
            "name": _TEXT,
            "ends_at": {"type": ["number", "null"]},
        }
    ),
    "close_answer": _object({"run_id": _TEXT, "was_closed": _YES_NO}),
    "drain_answer": _object({**_NODE, "was_asked": _YES_NO, "state": _TEXT}),
    "evict_answer": _object({**_NODE, "was_evicted": _YES_NO, "reason": _TEXT}),
    "admit_answer": _object({**_NODE, "was": _TEXT}),
    "scale_answer": _object(
        {
            "run_id": _TEXT,
            "min_nodes": _COUNT,
            "max_nodes": _COUNT,
            "was": {"type": ["array", "null"], "items": _COUNT},
            "text": _TEXT,
        }
    ),
    "stacks_answer": _object(
        {
            "run_id": _TEXT,
            "round": _COUNT,
            "summary": {**_TEXT, "description": "who stands where, in one line"},
            "step": {"type": ["integer", "null"]},
            "nodes": {"type": "array", "items": _object({"node": _TEXT, "workers": _WORKERS})},
            "silent": {**_TEXTS, "description": "the nodes that have not answered in time"},
            "cannot": {**_TEXTS, "description": "the nodes of a release that cannot be asked"},
        }
    ),
}


def text() -> str:
    """The contents of the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
