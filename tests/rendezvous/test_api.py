"""The classes of rendezvous.api: parameters, the registry, and what a handler returns."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from rallypoint import rendezvous
from rallypoint.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from tests.rendezvous.dummy_handler import DummyHandler, parameters

# -- the names -----------------------------------------------------------------------------------


def test_the_package_exports_torchs_13_names() -> None:
    assert rendezvous.__all__ == sorted(
        [
            "RendezvousClosedError",
            "RendezvousConnectionError",
            "RendezvousError",
            "RendezvousGracefulExitError",
            "RendezvousHandler",
            "RendezvousHandlerCreator",
            "RendezvousHandlerRegistry",
            "RendezvousInfo",
            "RendezvousParameters",
            "RendezvousStateError",
            "RendezvousStoreInfo",
            "RendezvousTimeoutError",
            "rendezvous_handler_registry",
        ]
    )
    assert all(hasattr(rendezvous, name) for name in rendezvous.__all__)


@pytest.mark.parametrize("name", [n for n in rendezvous.__all__ if n.endswith("Error")])
def test_every_error_is_a_rendezvous_error(name: str) -> None:
    kind = getattr(rendezvous, name)
    assert issubclass(kind, RendezvousError)
    assert str(kind("why")) == "why"


# -- parameters ----------------------------------------------------------------------------------


def test_parameters_keep_their_arguments() -> None:
    found = RendezvousParameters(
        backend="dummy",
        endpoint="host:1",
        run_id="run",
        min_nodes=3,
        max_nodes=6,
        local_addr="10.0.0.1",
        key="value",
    )
    assert (found.backend, found.endpoint, found.run_id) == ("dummy", "host:1", "run")
    assert (found.min_nodes, found.max_nodes, found.local_addr) == (3, 6, "10.0.0.1")
    assert found.config == {"key": "value"}
    assert found.get("key") == "value"


def test_local_addr_and_options_need_not_be_given() -> None:
    found = parameters()
    assert found.local_addr is None
    assert found.config == {}


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 3), (3, 3)])
def test_one_node_is_enough_and_minimum_may_be_maximum(least: int, most: int) -> None:
    found = RendezvousParameters("dummy", "host:1", "run", min_nodes=least, max_nodes=most)
    assert (found.min_nodes, found.max_nodes) == (least, most)


@pytest.mark.parametrize("backend", [None, ""])
def test_a_backend_has_a_name(backend: Any) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the whole message is compared)
        # The name is looked at before the numbers of nodes.
        RendezvousParameters(backend, "host:1", "run", min_nodes=0, max_nodes=0)
    assert str(raised.value) == "The rendezvous backend name must be a non-empty string."


@pytest.mark.parametrize("least", [0, -5])
def test_a_round_has_at_least_one_node(least: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^The minimum number of rendezvous nodes \({least}\) must be greater than zero\.$",
    ):
        RendezvousParameters("dummy", "host:1", "run", min_nodes=least, max_nodes=2)


@pytest.mark.parametrize("most", [2, 0, -2])
def test_the_maximum_of_nodes_is_at_least_the_minimum(most: int) -> None:
    with pytest.raises(ValueError, match=rf"\({most}\) must be greater than or equal .* \(3\)\.$"):
        RendezvousParameters("dummy", "host:1", "run", min_nodes=3, max_nodes=most)


@pytest.mark.parametrize("run_id", [None, "", "any"])
def test_a_run_id_is_not_checked(run_id: Any) -> None:
    assert RendezvousParameters("dummy", "host:1", run_id, 1, 1).run_id == run_id


def test_a_missing_option_is_none_or_the_default() -> None:
    found = parameters(key=1)
    assert found.get("other") is None
    assert found.get("other", 5) == 5
    assert found.get_as_bool("other") is None
    assert found.get_as_bool("other", True) is True
    assert found.get_as_bool("other", default=False) is False
    assert found.get_as_int("other") is None
    assert found.get_as_int("other", 5) == 5


def test_an_option_that_is_none_stays_none() -> None:
    found = parameters(key=None)
    assert found.get_as_bool("key", True) is None
    assert found.get_as_int("key", 5) is None


@pytest.mark.parametrize("value", ["1", "true", "True", "TRUE", "t", "T", "yes", "Y", 1, True])
def test_true_texts_are_true(value: Any) -> None:
    assert parameters(key=value).get_as_bool("key") is True


@pytest.mark.parametrize("value", ["0", "false", "False", "FALSE", "f", "F", "no", "N", 0, False])
def test_false_texts_are_false(value: Any) -> None:
    assert parameters(key=value).get_as_bool("key") is False


@pytest.mark.parametrize(
    "value", ["01", "Flse", "on", "off", "", " true", 2, -1, 1.0, object(), []]
)
def test_a_text_that_is_neither_is_an_error_that_names_the_key(value: Any) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parameters(key=value).get_as_bool("key")
    assert str(raised.value) == (
        "The rendezvous configuration option 'key' does not represent a valid boolean value."
    )


@pytest.mark.parametrize(
    ("value", "expected"), [("123", 123), (" 7 ", 7), ("-4", -4), (0, 0), (2.9, 2), (True, 1)]
)
def test_integer_texts_are_integers(value: Any, expected: int) -> None:
    found = parameters(key=value).get_as_int("key")
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize("value", ["a", "0b1", "1.5", "", "3 4", [], object(), float("inf")])
def test_a_text_that_is_no_integer_is_an_error_that_names_the_key(value: Any) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        parameters(key=value).get_as_int("key")
    assert str(raised.value) == (
        "The rendezvous configuration option 'key' does not represent a valid integer value."
    )


def test_parameters_do_not_show_their_options() -> None:
    assert "secret" not in repr(parameters(token="secret"))


# -- the registry --------------------------------------------------------------------------------


@pytest.fixture
def registry() -> RendezvousHandlerRegistry:
    return RendezvousHandlerRegistry()


class Creators:
    """Its bound method is a new object at each look, and always equal."""

    def create(self, params: RendezvousParameters) -> RendezvousHandler:
        return DummyHandler(params)


def test_the_same_creator_may_be_registered_again(registry: RendezvousHandlerRegistry) -> None:
    creators = Creators()
    registry.register("dummy", creators.create)
    registry.register("dummy", creators.create)
    assert isinstance(registry.create_handler(parameters()), DummyHandler)


def test_another_creator_of_a_name_is_refused_and_both_are_named(
    registry: RendezvousHandlerRegistry,
) -> None:
    first, second = Creators().create, lambda params: DummyHandler(params, "other")
    registry.register("dummy", first)
    with pytest.raises(ValueError, match="already") as raised:
        registry.register("dummy", second)
    assert "'dummy'" in str(raised.value)
    assert str(first) in str(raised.value)
    assert str(second) in str(raised.value)
    assert registry.create_handler(parameters()).get_backend() == "dummy"


def test_override_is_the_way_to_replace_a_backend(registry: RendezvousHandlerRegistry) -> None:
    registry.register("dummy", Creators().create)
    replacement = DummyHandler(parameters())
    registry.register("dummy", lambda params: replacement, override=True)
    assert registry.create_handler(parameters()) is replacement


@pytest.mark.parametrize("name", ["", None])
def test_a_registered_backend_has_a_name(registry: RendezvousHandlerRegistry, name: Any) -> None:
    with pytest.raises(ValueError, match="must be a non-empty string"):
        registry.register(name, Creators().create)


def test_a_handler_is_made_from_the_parameters(registry: RendezvousHandlerRegistry) -> None:
    registry.register("dummy", Creators().create)
    params = parameters()
    handler = registry.create_handler(params)
    assert isinstance(handler, DummyHandler)
    assert handler.params is params


def test_an_unregistered_name_is_an_error(registry: RendezvousHandlerRegistry) -> None:
    registry.register("known", Creators().create)
    with pytest.raises(ValueError, match="Did you forget to call `register`") as raised:
        registry.create_handler(parameters())
    assert "'dummy'" in str(raised.value)
    assert raised.value.__notes__ == ["Registered are: known."]


def test_a_handler_of_another_backend_is_an_error(registry: RendezvousHandlerRegistry) -> None:
    registry.register("dummy", lambda params: DummyHandler(params, "another"))
    with pytest.raises(RuntimeError) as raised:
        registry.create_handler(parameters())
    assert "'another'" in str(raised.value)
    assert "'dummy'" in str(raised.value)


def test_an_error_of_a_creator_is_raised(registry: RendezvousHandlerRegistry) -> None:
    error = KeyError("of the creator's own")

    def fail(params: RendezvousParameters) -> RendezvousHandler:
        raise error

    registry.register("dummy", fail)
    with pytest.raises(KeyError) as raised:
        registry.create_handler(parameters())
    assert raised.value is error


def test_entry_points_are_read_once_and_only_for_an_unknown_name() -> None:
    asked: list[RendezvousHandlerRegistry] = []

    def discover(registry: RendezvousHandlerRegistry) -> None:
        asked.append(registry)
        registry.register("found", lambda params: DummyHandler(params, "found"))

    registry = RendezvousHandlerRegistry(discover=discover)
    registry.register("dummy", Creators().create)
    registry.create_handler(parameters())
    assert asked == []
    assert registry.create_handler(parameters("found")).get_backend() == "found"
    with pytest.raises(ValueError, match="found"):
        registry.create_handler(parameters("nowhere"))
    assert asked == [registry]


def test_a_thread_waits_for_the_lookup_of_another() -> None:
    looking, go_on = threading.Event(), threading.Event()

    def discover(registry: RendezvousHandlerRegistry) -> None:
        looking.set()
        assert go_on.wait(20)
        registry.register("found", lambda params: DummyHandler(params, "found"))

    registry = RendezvousHandlerRegistry(discover=discover)
    made: list[RendezvousHandler] = []
    threads = [
        threading.Thread(target=lambda: made.append(registry.create_handler(parameters("found"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert looking.wait(20)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(made) == 4


# -- a handler, and what it returns --------------------------------------------------------------


def test_a_handler_does_not_share_its_store_by_default() -> None:
    assert DummyHandler(parameters()).use_agent_store is False


def test_a_handler_has_every_method() -> None:
    with pytest.raises(TypeError, match="abstract"):
        RendezvousHandler()  # type: ignore[abstract]


def test_a_round_is_read_only() -> None:
    where = RendezvousStoreInfo("host", 29500)
    store = object()
    info = RendezvousInfo(store, 1, 2, where)
    assert (info.store, info.rank, info.world_size) == (store, 1, 2)
    assert info.bootstrap_store_info is where
    for name in ("store", "rank", "world_size", "bootstrap_store_info"):
        with pytest.raises(AttributeError):
            setattr(info, name, 0)


def test_a_store_is_made_once_on_demand() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    info = RendezvousInfo(None, 0, 1, None, store_factory=make)
    assert made == []
    assert info.store is info.store
    assert made == [info.store]


def test_a_store_that_failed_is_made_again() -> None:
    stores = iter([None, "store"])

    def make() -> object:
        store = next(stores)
        if store is None:
            raise RendezvousError("not yet")
        return store

    info = RendezvousInfo(None, 0, 1, None, store_factory=make)
    with pytest.raises(RendezvousError, match="not yet"):
        _ = info.store
    assert info.store == "store"


class DictStore(dict[str, bytes]):
    """Has the two calls that an address is exchanged by."""

    def set(self, key: str, value: bytes) -> None:
        self[key] = value

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


def test_rank_0_shares_the_address_of_the_store() -> None:
    store = DictStore()
    told = RendezvousStoreInfo.build(0, store, "10.0.0.1", server_port=29501)
    assert store == {"MASTER_ADDR": b"10.0.0.1", "MASTER_PORT": b"29501"}
    assert told == RendezvousStoreInfo("10.0.0.1", 29501)
    assert RendezvousStoreInfo.build(1, store, "10.0.0.2") == told
    assert len(store) == 2


@pytest.mark.sockets
def test_without_an_address_rank_0_shares_its_name_and_a_free_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.getfqdn", lambda: "node7.example")
    told = RendezvousStoreInfo.build(0, DictStore(), None)
    assert told.master_addr == "node7.example"
    assert 0 < told.master_port < 2**16


def test_the_address_of_the_store_is_a_dataclass_of_two_fields() -> None:
    fields = [field.name for field in dataclasses.fields(RendezvousStoreInfo)]
    assert fields == ["master_addr", "master_port"]
    assert (RendezvousStoreInfo.MASTER_ADDR_KEY, RendezvousStoreInfo.MASTER_PORT_KEY) == (
        "MASTER_ADDR",
        "MASTER_PORT",
    )
