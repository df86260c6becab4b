"""The c10d backend: one state in a torch store, over each kind of store, and how it is reached."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rallypoint.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
    RendezvousStateError,
    _torch_bridge,
)
from rallypoint.rendezvous import c10d_rendezvous_backend as c10d
from rallypoint.rendezvous._stores import prefixed
from rallypoint.rendezvous.c10d_rendezvous_backend import (
    DEFAULT_PORT,
    C10dRendezvousBackend,
    create_backend,
)
from tests.ports import free_port
from tests.rendezvous.backends import Bomb, bomb, freeze, takes_at_most

pytestmark = [pytest.mark.sockets, pytest.mark.torch]

RUN = "run"
KEY = f"torch.rendezvous.{RUN}"


# -- without torch ---------------------------------------------------------------------------------


def test_without_torch_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_bridge, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"c10d.* needs PyTorch, which is not installed"):
        create_backend(RendezvousParameters("c10d", "localhost", RUN, 1, 1))


def test_the_default_port_is_torchs() -> None:
    assert DEFAULT_PORT == 29400


# -- the state -------------------------------------------------------------------------------------


@pytest.fixture(params=["tcp", "file", "hash"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    distributed = pytest.importorskip("torch.distributed")
    match request.param:
        case "tcp":
            return distributed.TCPStore("127.0.0.1", 0, is_master=True)
        case "file":
            return distributed.FileStore(str(tmp_path / "store"))
    return distributed.HashStore()


@pytest.fixture
def backend(store: Any) -> C10dRendezvousBackend:
    return C10dRendezvousBackend(store, RUN)


def test_a_run_id_is_needed() -> None:
    with pytest.raises(ValueError, match="run id"):
        C10dRendezvousBackend(None, "")


def test_creating_a_backend_uses_no_store() -> None:
    assert C10dRendezvousBackend(object(), RUN).name == "c10d"


def test_there_is_no_state_at_first(backend: C10dRendezvousBackend) -> None:
    assert backend.get_state() is None
    assert backend.get_state() is None


def test_a_state_is_created_if_there_is_none(backend: C10dRendezvousBackend, store: Any) -> None:
    made = backend.set_state(b"one")
    assert made is not None
    state, token, has_set = made
    assert (state, has_set) == (b"one", True)
    assert backend.get_state() == (b"one", token)
    assert store.get(KEY) == b64encode(b"one")


def test_another_handle_sees_it(backend: C10dRendezvousBackend, store: Any) -> None:
    backend.set_state(b"one")
    found = C10dRendezvousBackend(store, RUN).get_state()
    assert found is not None
    assert found[0] == b"one"
    assert C10dRendezvousBackend(store, "another").get_state() is None


def test_a_state_is_replaced_by_its_token(backend: C10dRendezvousBackend) -> None:
    made = backend.set_state(b"one")
    assert made is not None
    replaced = backend.set_state(b"two", made[1])
    assert replaced is not None
    assert (replaced[0], replaced[2]) == (b"two", True)
    assert backend.get_state() == replaced[:2]


@pytest.mark.parametrize(
    "token",
    [None, "", b"", "stale", b"stale", b"\xff", 7, {}, pytest.param(object(), id="an object")],
    ids=repr,
)
def test_a_token_that_is_stale_or_senseless_changes_nothing(
    backend: C10dRendezvousBackend, token: Any
) -> None:
    made = backend.set_state(b"one")
    assert made is not None
    assert backend.set_state(b"two", token) == (b"one", made[1], False)
    assert backend.get_state() == made[:2]


@pytest.mark.parametrize("token", [b"stale", b64encode(b"one"), 7], ids=repr)
def test_a_token_creates_nothing(backend: C10dRendezvousBackend, token: Any) -> None:
    assert backend.set_state(b"one", token) is None
    assert backend.get_state() is None


def test_an_older_token_is_stale(backend: C10dRendezvousBackend) -> None:
    first = backend.set_state(b"one")
    assert first is not None
    second = backend.set_state(b"two", first[1])
    assert second is not None
    assert backend.set_state(b"three", first[1]) == (*second[:2], False)


def test_bytes_that_are_no_state_are_a_state_error(
    backend: C10dRendezvousBackend, store: Any
) -> None:
    store.set(KEY, "not base64!")
    with pytest.raises(RendezvousStateError, match="base64"):
        backend.get_state()
    with pytest.raises(RendezvousStateError, match="base64"):
        backend.set_state(b"one")


def test_nothing_is_unpickled(backend: C10dRendezvousBackend, store: Any) -> None:
    store.set(KEY, b64encode(bomb()).decode())
    found = backend.get_state()
    assert found is not None
    assert found[0] == bomb()
    assert not Bomb.went_off


def test_an_error_of_the_store_is_a_connection_error() -> None:
    class Failing:
        def compare_set(self, *args: str) -> bytes:
            raise RuntimeError("connection reset\nC++ stack follows")

    backend = C10dRendezvousBackend(Failing(), RUN)
    with pytest.raises(RendezvousConnectionError, match=r"Failing.*connection reset$") as caught:
        backend.get_state()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RendezvousConnectionError):
        backend.set_state(b"one")


def test_a_waiting_store_call_does_not_block_the_backend(
    backend: C10dRendezvousBackend, store: Any
) -> None:
    """As torchrun's agent waits in its exit barrier, on the store that a coordinator lives by."""
    ended = threading.Event()

    def wait() -> None:
        with contextlib.suppress(RuntimeError):
            store.wait(["never"], timedelta(seconds=5))
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.2)
    assert backend.set_state(b"one") is not None
    found = backend.get_state()
    assert found is not None
    assert backend.set_state(b"two", found[1]) is not None
    assert not ended.is_set()
    assert ended.wait(30)


# -- from parameters -------------------------------------------------------------------------------


def params(endpoint: str = "", **config: Any) -> RendezvousParameters:
    return RendezvousParameters("c10d", endpoint, RUN, 1, 1, **config)


@pytest.fixture
def torch_distributed() -> Any:
    return pytest.importorskip("torch.distributed")


@pytest.mark.parametrize("is_host", ["true", True, 1, None])
def test_a_tcp_store_is_served(torch_distributed: Any, is_host: Any) -> None:
    port = free_port()
    backend, store = create_backend(
        params(f"localhost:{port}", is_host=is_host, store_type=" tCp ", read_timeout="10")
    )
    assert isinstance(store, torch_distributed.TCPStore)
    assert (store.host, store.port, store.timeout) == ("localhost", port, timedelta(seconds=10))
    assert backend.server_host == "localhost"
    backend.set_state(b"one")
    assert store.get(KEY) == b64encode(b"one")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]", "224.0.0.1", "255.255.255.255"]
)
def test_an_address_that_names_no_machine_is_not_this_one(
    torch_distributed: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Every machine could serve a store there, and no node would find another."""
    port, asked = free_port(), []

    def serve(host: str, port: int, **given: Any) -> None:
        asked.append(given["is_server"])
        raise RuntimeError("seen")

    monkeypatch.setattr(_torch_bridge, "tcp_store", serve)
    monkeypatch.setattr(c10d, "_knock", lambda *_: [])
    with pytest.raises(RendezvousConnectionError):
        create_backend(params(f"{host}:{port}", read_timeout=1))
    assert asked == [False]
    with pytest.raises(RendezvousConnectionError):
        create_backend(params(f"{host}:{port}", read_timeout=1, is_host=True))
    assert asked == [False, True]


def test_the_wildcard_is_served_on_the_host(torch_distributed: Any) -> None:
    port = free_port()
    _, store = create_backend(params(f"0.0.0.0:{port}", is_host=True, read_timeout=10))
    client = torch_distributed.TCPStore("127.0.0.1", port, is_master=False)
    client.set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.parametrize("is_host", ["false", None])
def test_an_existing_tcp_store_is_used(torch_distributed: Any, is_host: Any) -> None:
    served = torch_distributed.TCPStore("localhost", 0, is_master=True)
    backend, store = create_backend(params(f"localhost:{served.port}", is_host=is_host))
    assert store.timeout == timedelta(seconds=60)
    backend.set_state(b"one")
    assert served.get(KEY) == b64encode(b"one")


@pytest.mark.processes
def test_a_store_of_another_process_is_used(torch_distributed: Any) -> None:
    with ServedElsewhere() as (_, port):
        backend, _ = create_backend(params(f"localhost:{port}", read_timeout=20))
        assert backend.get_state() is None


@pytest.mark.processes
def test_a_host_that_comes_later_is_awaited(torch_distributed: Any) -> None:
    port = free_port()
    later = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE)
    try:
        backend, _ = create_backend(params(f"127.0.0.1:{port}", is_host="0", read_timeout=100))
        assert backend.get_state() is None
    finally:
        later.kill()
        later.communicate()


def test_a_machine_that_cannot_resolve_its_own_name_is_the_host_all_the_same(
    torch_distributed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "nameless":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "gethostname", lambda: "nameless.cluster")
    port = free_port()
    _, first = create_backend(params(f"nameless:{port}", read_timeout=5))
    # One more process on that machine comes second, and finds the first.
    monkeypatch.setattr(c10d, "_served", lambda *args: (_ for _ in ()).throw(OSError("in use")))
    backend, _ = create_backend(params(f"nameless:{port}", read_timeout=5))
    backend.set_state(b"one")
    assert first.get(KEY) == b64encode(b"one")


@pytest.mark.parametrize("given", [True, False])
def test_a_file_store_is_served(torch_distributed: Any, tmp_path: Path, given: bool) -> None:
    path = str(tmp_path / "store") if given else ""
    backend, store = create_backend(params(path, store_type="fIlE"))
    assert isinstance(store, torch_distributed.FileStore)
    assert store.path == path if given else store.path.startswith(tempfile.gettempdir())
    backend.set_state(b"one")
    assert store.get(KEY) == b64encode(b"one")
    if not given:
        Path(store.path).unlink()


def test_a_missing_folder_is_an_error(torch_distributed: Any) -> None:
    with pytest.raises(RendezvousConnectionError, match=r"/no/such/store.*No such file"):
        create_backend(params("/no/such/store", store_type="file"))


def test_a_temporary_file_that_cannot_be_made(
    torch_distributed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**kwargs: Any) -> Any:
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(RendezvousError, match="read-only"):
        create_backend(params(store_type="file"))


@pytest.mark.parametrize(
    ("endpoint", "config", "named"),
    [
        (
            "localhost",
            {"store_type": "ram"},
            "^Invalid store type given. Currently only supports file and tcp.$",
        ),
        ("localhost", {"read_timeout": "0"}, "^The read timeout must be a positive integer.$"),
        ("localhost", {"read_timeout": "-10"}, "^The read timeout must be a positive integer.$"),
        ("localhost", {"read_timeout": "soon"}, "'read_timeout'"),
        ("localhost", {"is_host": "perhaps"}, "'is_host'"),
        ("localhost:http", {}, "port"),
    ],
)
def test_bad_arguments_are_named(
    torch_distributed: Any, endpoint: str, config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        create_backend(params(endpoint, **config))


# -- a store that cannot be reached ----------------------------------------------------------------


def test_an_address_without_a_listener_is_an_error(torch_distributed: Any) -> None:
    port = free_port()
    with takes_at_most(1), pytest.raises(RendezvousConnectionError) as caught:
        create_backend(params(f"127.0.0.1:{port}", is_host=False, read_timeout=1))
    assert str(caught.value) == (
        "The connection to the C10d store has failed. See inner exception for details."
    )
    for text in (caught.value.__notes__[0], str(caught.value.__cause__)):
        assert f"127.0.0.1:{port} within 1 s" in text
        assert f"127.0.0.1:{port}: Connection refused" in text


def test_an_error_has_the_answer_of_the_address(
    torch_distributed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine stalled for the whole read timeout before anything was sent."""
    is_here, look_up = c10d._is_here, socket.getaddrinfo

    def late(host: str, limit_s: float) -> bool:
        time.sleep(1.1)
        return is_here(host, limit_s)

    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(0.05)
        return look_up(*args, **more)

    monkeypatch.setattr(c10d, "_is_here", late)
    monkeypatch.setattr(c10d, "LEAST_S", 30.0)
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    port = free_port()
    with pytest.raises(RendezvousConnectionError) as caught:
        create_backend(params(f"0.0.0.0:{port}", read_timeout=1))
    assert f"0.0.0.0:{port}: Connection refused" in caught.value.__notes__[0]


@pytest.mark.parametrize("is_host", [True, False])
def test_an_unknown_name_is_an_error(
    torch_distributed: Any, monkeypatch: pytest.MonkeyPatch, is_host: bool
) -> None:
    def unknown(host: str, *args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    given = params("unknown.invalid:29500", is_host=is_host, read_timeout=1)
    with takes_at_most(1), pytest.raises(RendezvousConnectionError, match=r"unknown\.invalid"):
        create_backend(given)


def test_a_listener_that_never_answers_is_an_error(torch_distributed: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        given = params(f"127.0.0.1:{port}", is_host=False, read_timeout=1)
        with takes_at_most(1), pytest.raises(RendezvousConnectionError, match="no TCPStore"):
            create_backend(given)


def test_a_port_of_another_program_cannot_be_served(torch_distributed: Any) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        given = params(f"127.0.0.1:{port}", is_host=True, read_timeout=2)
        with takes_at_most(2), pytest.raises(RendezvousConnectionError, match="cannot be served"):
            create_backend(given)


SERVER = """
import sys, signal
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True)
print(store.port, flush=True)
signal.pause()
"""


class ServedElsewhere:
    """A TCPStore in a process of its own, and its port."""

    def __enter__(self) -> tuple[subprocess.Popen[str], int]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        return self.process, int(self.process.stdout.readline())

    def __exit__(self, *raised: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def elsewhere(torch_distributed: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with ServedElsewhere() as served:
        yield served


@pytest.mark.processes
def test_a_frozen_host_delays_no_call_past_the_read_timeout(
    elsewhere: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = elsewhere
    given = params(f"127.0.0.1:{port}", is_host=False, read_timeout=2)
    backend, _ = create_backend(given)
    backend.set_state(b"one")
    freeze(process)
    try:
        for _ in range(2):
            with takes_at_most(2), pytest.raises(RendezvousConnectionError, match="within 2 s"):
                backend.get_state()
        with takes_at_most(2), pytest.raises(RendezvousConnectionError, match="within 2 s"):
            backend.set_state(b"two")
        with takes_at_most(2), pytest.raises(RendezvousConnectionError):
            create_backend(given)
    finally:
        process.send_signal(signal.SIGCONT)
    ends_s = time.monotonic() + 20
    while time.monotonic() < ends_s:
        try:
            found = backend.get_state()
        except RendezvousConnectionError:
            continue
        assert found is not None
        return
    raise AssertionError("the store answers again, and the backend does not")


@pytest.mark.processes
def test_a_rounds_store_on_a_frozen_host_blocks_no_call_past_its_timeout(
    elsewhere: tuple[subprocess.Popen[str], int],
) -> None:
    distributed = pytest.importorskip("torch.distributed")
    process, port = elsewhere
    client = distributed.TCPStore("127.0.0.1", port, is_master=False)
    store = prefixed("round", client, lambda: None)
    store.set("key", "value")
    assert (store.get("key"), store.add("count", 2)) == (b"value", 2)
    store.append("key", "s")
    store.multi_set(["one", "two"], ["1", "2"])
    store.wait(["one", "two"])
    assert store.multi_get(["key", "two"]) == [b"values", b"2"]
    assert store.compare_set("one", "1", "3") == b"3"
    assert store.delete_key("one")
    assert not store.check(["one"])
    assert store.num_keys() >= 3
    store.set_timeout(timedelta(seconds=1))
    freeze(process)
    for call in (lambda: store.get("key"), lambda: store.wait(["key"], timedelta(seconds=1))):
        with takes_at_most(2), pytest.raises(distributed.DistNetworkError, match="frozen"):
            call()


@pytest.mark.processes
def test_a_dead_host_is_a_connection_error(elsewhere: tuple[subprocess.Popen[str], int]) -> None:
    process, port = elsewhere
    backend, _ = create_backend(params(f"127.0.0.1:{port}", is_host=False, read_timeout=2))
    process.kill()
    process.wait()
    with takes_at_most(2), pytest.raises(RendezvousConnectionError, match="TCPStore"):
        backend.get_state()
