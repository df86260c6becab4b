"""What people write: endpoints, ledgers, settings, run ids, hosts, options of launchers."""

from __future__ import annotations

import base64
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from rallypoint import endpoints, environments, errors, settings
from rallypoint.coordinator import hosts, tokens
from rallypoint.core import naming
from rallypoint.core.printable import escaped
from rallypoint.launch import console_rule
from rallypoint.ledger import keys
from rallypoint.rendezvous import rallypoint_rendezvous, utils
from rallypoint.rendezvous.api import RendezvousParameters
from rallypoint.security.hashed import as_toml, read_toml
from rallypoint.security.roles import Denial, Principal, Role
from rallypoint.simulation.fleet import trace
from tests.environments.recorded import mpi_process, pod, slurm_task
from tests.fuzz.watching import Watch, must

INPUTS: Final = 3_000
LAUNCHED: Final = (
    slurm_task(1),
    mpi_process(2),
    pod(1),
    {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "h:1", "PET_RDZV_ID": "j", "PET_NODE_RANK": "1"},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
)
SECRET: Final = "s3cret-in-a-wrong-place"

_PARTS: Final = (
    *("http://", "https://", "etcd://", "etcds://", "file:", "file://", "file:///", "HTTP://"),
    *("localhost", "host", "10.0.0.1", "[::1]", "[fe80::1%eth0]", "::1", "[", "]", "1.2.3", "é"),
    *(":", ":0", ":29400", ":65536", ":-1", ":\u0663", "/", "//", "/..", "?", "#", "@", ",", "&"),
    *("?user=a", "&password=x", "?ca=a&cert=b", "?password_file=f", "%00", "%2f", "%", "\0", "\n"),
    *(" ", "\u202e", "\x1b[2J", "x" * 300, "1" * 5_000, "=", "1.5", "10s", "2m", "500ms", "-1"),
    *("1e9", "nan", "inf", "any", "auto", "never", "2:4", "4:2", "4", "0", "true", "\udcff"),
)


def text(rng: Random) -> str:
    """Some of the parts, put together."""
    return "".join(rng.choice(_PARTS) for _ in range(rng.choice((0, 1, 1, 2, 3, 4, 6))))


def _setting(value: str, rng: Random) -> None:
    known = rng.choice(settings.SETTINGS)
    settings.resolve(known.name, value)
    settings.resolve(known.name, None, {known.variable: value})


def _run_id(value: str, rng: Random) -> None:
    found = settings.resolve("run_id", value).value
    quoted = keys.quoted(found)
    must("/" not in quoted, "a run's id is one part of a name")
    must(len(quoted.encode()) <= keys.QUOTED_BYTES_MAX + 1, "and a short one")


def _token(value: str, rng: Random) -> None:
    secret = SECRET + value
    try:
        settings.resolve_token(environ={"RALLYPOINT_TOKEN": secret})
    except errors.UsageError as error:
        must(SECRET not in f"{error} {error.hint}", "a token is shown")
    settings.token_bits(secret)


_FOLDER: Final = tempfile.TemporaryDirectory(prefix="rallypoint-fuzz-")


def _token_file(value: str, rng: Random) -> None:
    """A file that a user names: any bytes may be in it, and the error shows none of them."""
    path = Path(_FOLDER.name) / "token"
    data = rng.choice((b"", b"\n", b"\xff\xfe", b"\0" * 20, SECRET.encode(), b" " * 600))
    path.write_bytes(data + value.encode("utf-8", "surrogateescape"))
    try:
        settings.resolve_token(str(path), {})
    except errors.UsageError as error:
        must(SECRET not in f"{error} {error.hint}", "what a token file holds is shown")


_CLAIM: Final = b'{"id":"a","roles":["node"],"runs":"team-*","not_before":0,"ends_at":9999999999}'
_TOML: Final = '[[token]]\nid = "a"\nsha256 = "' + "ab" * 32 + '"\nrole = "viewer"\nruns = "x-*"\n'
_CA: Final = "ab" * 32


def _claim(value: str, rng: Random) -> None:
    """A claim that nobody has signed, with some bytes changed: it is never accepted."""
    payload = bytearray(_CLAIM)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(payload))
        payload[at : at + rng.randrange(4)] = value.encode("utf-8", "surrogateescape")[:9]
    parts = [base64.urlsafe_b64encode(each).decode().rstrip("=") for each in (payload, payload)]
    text = f"rlp1.{_CA}.c.{parts[0]}.{parts[1][: rng.randrange(99)]}"
    known = tokens.Tokens(("t",), authorities={})
    must(isinstance(known.login(f"Bearer {text}"), Denial), "a claim of nobody is accepted")
    settings.check_token(text, "token")


def _hashed(value: str, rng: Random) -> None:
    """tokens.toml: what is read is written so that it is read again."""
    at = rng.randrange(len(_TOML))
    changed = _TOML[:at] + value + _TOML[at + rng.randrange(9) :]
    for each in read_toml(changed.encode("utf-8", "surrogateescape")):
        must(read_toml(as_toml(each).encode()) == (each,), f"{changed!r} is read as {each}")


def _limits(value: str, rng: Random) -> None:
    """The header of a forwarded request only takes rights away."""
    viewer = Principal("id", (Role.VIEWER,), ("team-*",))
    found = viewer.narrowed(rng.choice(("viewer;", "operator;", "viewer,node;*", "")) + value)
    must(set(found.roles) <= {Role.VIEWER}, f"{value!r} adds a role")
    must(not found.sees("job-1"), f"{value!r} adds a run")
    Principal(runs=(value,)).sees(value)


def _endpoint(value: str, rng: Random) -> None:
    endpoint = endpoints.parse_endpoint(value)
    again = endpoints.parse_endpoint(str(endpoint.text))
    must(again == endpoint, f"{value!r} is read as {endpoint} and then as {again}")


def _ledger(value: str, rng: Random) -> None:
    endpoints.parse_ledger(value)


def _password(value: str, rng: Random) -> None:
    """Where a password is written into an endpoint, the error does not repeat it."""
    scheme = rng.choice(("http://", "etcd://", "etcds://"))
    try:
        endpoints.parse_endpoint(f"{scheme}user:{SECRET}@host{value}")
    except errors.EndpointError as error:
        must(SECRET not in f"{error} {error.hint}", f"a password is shown: {error}")


def _names(value: str, rng: Random) -> None:
    naming.is_host(value)
    naming.label_problem(value, value)
    must(escaped(value).isprintable(), f"{value!r} is not escaped")
    hosts.host_of(value)
    hosts.is_address(value)


def _environment(value: str, rng: Random) -> None:
    """What a launcher sets, with some of it changed: found, or a problem with its hint."""
    environ = dict(rng.choice(LAUNCHED))
    for name in rng.sample(sorted(environ), min(len(environ), rng.randrange(3))):
        environ[name] = rng.choice((value, "0", "", "9", environ[name] + value))
    found = environments.detect(environ, lambda path: value)
    for problem in found.problems.values():
        must(bool(problem.hint), f"no hint: {problem.message}")
    with contextlib.suppress(errors.UsageError):
        settings.run_settings(environ=environ)
    with contextlib.suppress(errors.UsageError):
        settings.node_settings(environ=environ, insecure=True)


def _worker(value: str, rng: Random) -> None:
    names = ("AGENT", "SECRET", "ROUND", "NODE", "LOCAL_RANK", "RUN_ID")
    environ = {f"RALLYPOINT_{name}": rng.choice((value, "1", "x")) for name in names}
    settings.worker_channel(environ)


def _streams(value: str, rng: Random) -> None:
    console_rule.read_streams(value)
    console_rule.read_local_ranks(value)


def _torch(value: str, rng: Random) -> None:
    utils.parse_rendezvous_endpoint(value, 29_400)


def _torch_options(value: str, rng: Random) -> None:
    """`--rdzv-conf`, as torchrun hands it on."""
    names = (*rallypoint_rendezvous.OPTIONS, "token_file", "nope", value)
    config: dict[str, Any] = {
        rng.choice(names): rng.choice((value, "5", 5, 1.5, True, None)) for _ in range(2)
    }
    endpoint = value if rng.random() < 0.3 else "host:29400"
    params = RendezvousParameters("rallypoint", endpoint, "run", 1, rng.choice((1, 2)), **config)
    rallypoint_rendezvous.create_handler(params)


def _trace(value: str, rng: Random) -> None:
    """A recorded trace of failures, as `rallypoint simulate --trace` reads it."""
    found = trace.read(io.StringIO(value, newline=""), "trace.csv")
    slots = {slot for each in found.failures for slot in each.slots}
    must(slots <= set(range(len(found.nodes))), "a node has no name")
    must(found.last_s >= 0, f"the trace ends at {found.last_s}")


_HEADERS: Final = (
    *("time,node,event", "time,node,event,kind", "start,end,node", "start,end,node,kind"),
    *("start,end,node,event", "time,start,end,node,event", "time,node", "Node ID,down,up", ""),
    *("node,node_id,time,event", "time_s;node;event", "\ufefftime,node,event"),
)
_CELLS: Final = (
    *("0", "5", "60.5", "1e3", "-1", "nan", "inf", "1e999", "9" * 5_000, "\u0663", "", " 7 "),
    *("2024-01-01", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00+01:00", "0001-01-01", "x"),
    *("n1", "n2", "n10", "n" + "1" * 5_000, "n\u00b2", "\0", '"', '"a""b"', "'", "\u202e"),
    *("down", "up", "DOWN", "0", "1", "failed", "repaired", "host", "process", "preempt", "gpu"),
)


def _csv(rng: Random) -> str:
    header = rng.choice(_HEADERS)
    rows = [header]
    for _ in range(rng.choice((0, 1, 2, 5))):
        cells = [_cell(column.strip().lower(), rng) for column in header.split(",")]
        rows.append(",".join(cells[: rng.choice((len(cells), len(cells), len(cells) - 1, 9))]))
    return rng.choice(("\n", "\n", "\r\n", "\r")).join(rows)


def _cell(column: str, rng: Random) -> str:
    """Mostly one that fits its column."""
    if rng.random() < 0.15:
        return rng.choice(_CELLS)
    match column:
        case "event":
            return rng.choice(("down", "up", "failed", "1", "0"))
        case "kind":
            return rng.choice(("", "host", "process", "freeze", "preempted"))
        case "time" | "start" | "end" | "down" | "up":
            return rng.choice((str(rng.randrange(100)), "2024-01-01", "2024-01-02T03:04:05Z", ""))
        case _:
            return rng.choice(("n1", "n2", "n10"))


_TRIED: Final[dict[Callable[[str, Random], None], tuple[type[Exception], ...]]] = {
    _setting: (errors.UsageError,),
    _run_id: (errors.UsageError,),
    _token: (errors.UsageError,),
    _endpoint: (errors.EndpointError,),
    _token_file: (),
    _claim: (errors.UsageError,),
    _hashed: (ValueError,),
    _limits: (),
    _password: (errors.EndpointError,),
    _ledger: (errors.EndpointError,),
    _names: (),
    _environment: (),
    _worker: (errors.UsageError,),
    _streams: (ValueError,),
    _torch: (ValueError,),
    _torch_options: (ValueError,),
    _trace: (errors.UsageError,),
}
_WAYS: Final = {way.__name__.strip("_"): way for way in _TRIED}


def made(rng: Random) -> tuple[str, str]:
    """One input: the name of what it is tried on, and the text."""
    name = rng.choice(tuple(_WAYS))
    return name, _csv(rng) if name == "trace" else text(rng)


def check(name: str, value: str, rng: Random) -> None:
    """Try it. Raises errors that are not declared."""
    way = _WAYS[name]
    try:
        way(value, rng)
    except _TRIED[way] as error:
        must(len(str(error)) < 80_000, f"{value[:60]!r}: an error of {len(str(error))} characters")


def one(rng: Random) -> None:
    """One input. Raises errors that are not declared."""
    check(*made(rng), rng)


def episode(rng: Random, watch: Watch) -> int:
    for _ in range(INPUTS):
        one(rng)
    return INPUTS
