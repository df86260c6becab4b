"""The backend `etcd` by the names of torch's older handler: nodes that meet through etcd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rallypoint.rendezvous import etcd_rendezvous
from rallypoint.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from rallypoint.rendezvous.etcd_blocking import EtcdConnection
from rallypoint.rendezvous.etcd_rendezvous import (
    EtcdRendezvous,
    EtcdRendezvousHandler,
    create_rdzv_handler,
)
from rallypoint.rendezvous.etcd_rendezvous_backend import create_backend
from rallypoint.rendezvous.registry import get_rendezvous_handler
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess
from tests.ports import free_port
from tests.rendezvous.backends import takes_at_most

pytestmark = pytest.mark.processes
Make = Callable[..., EtcdRendezvousHandler]


@pytest.fixture
def make(one_etcd: EtcdCluster, prefix: str) -> Iterator[Make]:
    """Handlers of one run; each is shut down at the end."""
    made: list[EtcdRendezvousHandler] = []

    def one(least: int = 1, most: int = 1, **config: Any) -> EtcdRendezvousHandler:
        params = RendezvousParameters(
            "etcd",
            one_etcd.endpoints[0],
            "run",
            least,
            most,
            local_addr="127.0.0.1",
            **{"etcd_prefix": prefix, "timeout": 30, **config},
        )
        handler = create_rdzv_handler(params)
        made.append(handler)
        return handler

    yield one
    for each in made:
        each.shutdown()


def _meet(handlers: Sequence[RendezvousHandler]) -> list[RendezvousInfo]:
    with ThreadPoolExecutor(len(handlers)) as pool:
        return list(pool.map(lambda each: each.next_rendezvous(), handlers))


def test_one_node_alone_has_a_round(make: Make) -> None:
    handler = make()
    assert (handler.get_backend(), handler.get_run_id()) == ("etcd", "run")
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size, handler.num_nodes_waiting()) == (0, 1, 0)
    info.store.set("key", "value")
    assert info.store.get("key") == b"value"
    assert not handler.is_closed()
    assert handler.shutdown()
    assert handler.is_closed()


def test_nodes_meet_and_meet_again(make: Make) -> None:
    handlers = [make(3, 3) for _ in range(3)]
    for _ in range(2):
        infos = _meet(handlers)
        assert sorted(info.rank for info in infos) == [0, 1, 2]
        assert {info.world_size for info in infos} == {3}
        assert len({str(info.bootstrap_store_info) for info in infos}) == 1
        infos[0].store.set("who", "0")
        assert infos[2].store.get("who") == b"0"


def test_closing_ends_the_run_for_all(make: Make) -> None:
    one, two = (make(2, 2) for _ in range(2))
    _meet([one, two])
    one.set_closed()
    assert one.is_closed()
    with pytest.raises(RendezvousClosedError):
        two.next_rendezvous()
    assert two.is_closed()


def test_the_ledger_of_a_run_is_below_the_prefix(
    make: Make, etcd_client: EtcdConnection, prefix: str
) -> None:
    make().next_rendezvous()
    assert etcd_client.read(f"{prefix}/ledger") is not None


def test_too_few_nodes_is_a_timeout(make: Make) -> None:
    with takes_at_most(1), pytest.raises(RendezvousTimeoutError):
        make(2, 2, timeout="1").next_rendezvous()


def test_a_handler_can_be_built_from_parts_as_in_torch(
    etcd_client: EtcdConnection, prefix: str
) -> None:
    rendezvous = EtcdRendezvous(
        client=etcd_client,
        prefix=prefix.strip("/"),
        run_id=1,
        num_min_workers=1,
        num_max_workers=1,
        timeout=60,
        last_call_timeout=30,
    )
    handler = EtcdRendezvousHandler(rendezvous)
    assert rendezvous.rendezvous_barrier() == (1, 0, 1)
    assert rendezvous.rendezvous_barrier() == (2, 0, 1)
    store = rendezvous.setup_kv_store(2)
    store.set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(ValueError, match="handler already"):
        EtcdRendezvousHandler(rendezvous)
    rendezvous.set_closed()
    assert handler.is_closed()
    assert handler.get_run_id() == "1"
    handler.shutdown()


def test_the_registry_has_the_backend(one_etcd: EtcdCluster, prefix: str) -> None:
    params = RendezvousParameters("etcd", one_etcd.endpoints[0], "run", 1, 1, etcd_prefix=prefix)
    handler = get_rendezvous_handler(params)
    assert isinstance(handler, EtcdRendezvousHandler)
    handler.next_rendezvous()
    handler.shutdown()


def test_the_module_has_torchs_constants() -> None:
    assert etcd_rendezvous.CONST_RUNID_SUBROOT_TTL == 7200
    assert etcd_rendezvous.CONST_ETCD_SETUP_TTL == 5
    assert issubclass(etcd_rendezvous.EtcdRendezvousRetryableFailure, Exception)
    assert issubclass(etcd_rendezvous.EtcdRendezvousRetryImmediately, Exception)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"timeout": "soon"}, "timeout"),
        ({"last_call_timeout": "x"}, "last_call_timeout"),
        ({"protocol": "ftp"}, "HTTP or HTTPS"),
        ({"etcd_prefix": "/"}, "prefix"),
        ({"read_timeout": "0"}, "read timeout"),
    ],
)
def test_bad_options_are_named(config: dict[str, Any], told: str) -> None:
    params = RendezvousParameters("etcd", "localhost", "run", 1, 1, **config)
    with pytest.raises(ValueError, match=told):
        create_rdzv_handler(params)


def test_a_missing_etcd_is_an_error_with_its_address() -> None:
    port = free_port()
    params = RendezvousParameters("etcd", f"127.0.0.1:{port}", "run", 1, 1, read_timeout=2)
    refused = pytest.raises(RendezvousConnectionError, match=f"127.0.0.1:{port}.*refused")
    with takes_at_most(2), refused:
        create_rdzv_handler(params)


def test_a_frozen_etcd_delays_no_call_past_its_deadline(
    failing_etcd: EtcdProcess, prefix: str
) -> None:
    params = RendezvousParameters(
        "etcd", failing_etcd.endpoint, "run", 1, 1, etcd_prefix=prefix, timeout=3, read_timeout=2
    )
    handler = create_rdzv_handler(params)
    failing_etcd.freeze()
    with takes_at_most(3), pytest.raises((RendezvousConnectionError, RendezvousTimeoutError)):
        handler.next_rendezvous()
    with takes_at_most(2), pytest.raises(RendezvousConnectionError, match=failing_etcd.endpoint):
        create_rdzv_handler(params)
    failing_etcd.thaw()
    handler.shutdown()


# -- etcd-v2: the state is a register --------------------------------------------------------------


def test_nodes_meet_through_the_backends_state(one_etcd: EtcdCluster, prefix: str) -> None:
    run_id = prefix.strip("/")
    handlers = [
        get_rendezvous_handler(
            RendezvousParameters(
                "etcd-v2", one_etcd.endpoints[0], run_id, 2, 2, "127.0.0.1", join_timeout=30
            )
        )
        for _ in range(2)
    ]
    assert {handler.get_backend() for handler in handlers} == {"etcd-v2"}
    client = EtcdConnection(endpoints=one_etcd.endpoints, read_timeout=10)
    for number in (1, 2):
        infos = _meet(handlers)
        assert sorted(info.rank for info in infos) == [0, 1]
        # A fresh store in each round, below the backend's own in etcd.
        assert infos[0].store.add("count", 1) == 1
        assert infos[1].store.add("count", 1) == 2
        below = f"/torch/elastic/store/torch.rendezvous.{run_id}.{number}"
        assert client.delete(below, recursive=True) == 1
    assert client.read(f"/torch/elastic/rendezvous/{run_id}") is not None
    for handler in handlers:
        assert handler.shutdown()
    assert client.delete(f"/torch/elastic/rendezvous/{run_id}") == 1
    client.close()


def test_under_torch_the_rounds_store_is_torchs(one_etcd: EtcdCluster, prefix: str) -> None:
    distributed = pytest.importorskip("torch.distributed")
    params = RendezvousParameters(
        "etcd-v2", one_etcd.endpoints[0], prefix.strip("/"), 1, 1, "127.0.0.1"
    )
    handler = get_rendezvous_handler(params)
    store = handler.next_rendezvous().store
    assert isinstance(store, distributed.PrefixStore)
    store.set("key", "value")
    below = distributed.PrefixStore("below", store)
    assert below.add("count", 3) == 3
    assert store.multi_get(["key", "below/count"]) == [b"value", b"3"]
    assert handler.shutdown()


def test_a_foreign_state_is_an_error(one_etcd: EtcdCluster, prefix: str) -> None:
    """Such as the pickled state of torch's own rendezvous; it is left as it is."""
    run_id = prefix.strip("/")
    params = RendezvousParameters(
        "etcd-v2", one_etcd.endpoints[0], run_id, 1, 1, "127.0.0.1", join_timeout=5
    )
    backend, store = create_backend(params)
    backend.set_state(b"\x80\x04garbage")
    handler = get_rendezvous_handler(params)
    with pytest.raises(RendezvousStateError):
        handler.next_rendezvous()
    handler.shutdown()
    now = backend.get_state()
    assert now is not None
    assert now[0] == b"\x80\x04garbage"
    store.client.close()
