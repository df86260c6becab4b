"""The dynamic rendezvous' settings: defaults, what cannot be, and what becomes of them."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import pytest

from rallypoint.endpoints import EndpointKind
from rallypoint.rendezvous import RendezvousError, RendezvousParameters, dynamic_rendezvous
from rallypoint.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousSettings,
    RendezvousTimeout,
    create_handler,
    get_method_name,
    run_settings,
)
from tests.rendezvous.backends import UsersBackend

SECOND = timedelta(seconds=1)


class Untouchable(UsersBackend):
    """Nothing may be asked of it."""

    def get_state(self) -> None:
        raise AssertionError("the backend was used")

    def set_state(self, state: bytes, token: Any = None) -> None:
        raise AssertionError("the backend was used")


class UntouchableStore:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the store was used: {name}")


# -- timeouts --------------------------------------------------------------------------------------


def test_timeouts_have_torchs_defaults() -> None:
    timeout = RendezvousTimeout()
    assert timeout.join == timedelta(seconds=600)
    assert timeout.last_call == timedelta(seconds=30)
    assert timeout.close == timedelta(seconds=30)
    assert timeout.heartbeat == timedelta(seconds=5)


def test_timeouts_keep_their_values_and_are_read_only() -> None:
    timeout = RendezvousTimeout(1 * SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND)
    given = [timeout.join, timeout.last_call, timeout.close, timeout.heartbeat]
    assert given == [1 * SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND]
    with pytest.raises(AttributeError):
        timeout.join = SECOND  # type: ignore[misc]


@pytest.mark.parametrize("name", ["join", "last_call", "close", "heartbeat"])
@pytest.mark.parametrize("seconds", [0, -1])
def test_a_timeout_that_is_not_positive_is_named(name: str, seconds: int) -> None:
    with pytest.raises(ValueError, match=f"{name} timeout.* positive"):
        RendezvousTimeout(**{name: seconds * SECOND})


# -- from a backend --------------------------------------------------------------------------------


def test_from_backend_uses_neither_the_backend_nor_the_store() -> None:
    timeout = RendezvousTimeout(join=5 * SECOND)
    handler = DynamicRendezvousHandler.from_backend(
        "run", UntouchableStore(), Untouchable(), 2, 4, timeout=timeout
    )
    assert (handler.get_backend(), handler.get_run_id()) == ("users", "run")
    settings = handler.settings
    assert isinstance(settings, RendezvousSettings)
    assert (settings.run_id, settings.min_nodes, settings.max_nodes) == ("run", 2, 4)
    assert settings.timeout is timeout
    assert settings.keep_alive_interval == timedelta(seconds=5)
    assert settings.keep_alive_max_attempt == 3
    assert handler.num_nodes_waiting() == 0


def test_from_backend_has_torchs_signature() -> None:
    parameters = inspect.signature(DynamicRendezvousHandler.from_backend).parameters
    assert list(parameters) == [
        *("run_id", "store", "backend", "min_nodes", "max_nodes", "local_addr", "timeout"),
        *("keep_alive_interval", "keep_alive_max_attempt"),
    ]
    assert parameters["keep_alive_interval"].default == 5
    assert parameters["keep_alive_max_attempt"].default == 3


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"run_id": ""}, "run id"),
        ({"min_nodes": 0}, r"^The minimum number of nodes \(0\) must be greater than zero\.$"),
        ({"min_nodes": -1}, r"\(-1\) must be greater than zero"),
        ({"max_nodes": 1}, r"maximum .* \(1\) must be greater than or equal .* \(2\)\.$"),
        ({"keep_alive_interval": 0}, "keep_alive_interval"),
        ({"keep_alive_max_attempt": 0}, "keep_alive_max_attempt"),
        ({"local_addr": "host:80"}, "local_addr"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, Any], named: str) -> None:
    usual = {"run_id": "run", "store": None, "backend": UsersBackend()}
    with pytest.raises(ValueError, match=named):
        DynamicRendezvousHandler.from_backend(**{**usual, "min_nodes": 2, "max_nodes": 4, **given})


def test_any_object_with_the_methods_is_a_backend() -> None:
    class Plain:
        name = "plain"
        server_host = 17  # not ours, and no host

        def get_state(self) -> None:
            return None

    handler = DynamicRendezvousHandler.from_backend("run", None, Plain(), 1, 1)  # type: ignore[arg-type]
    assert handler.get_backend() == "plain"


def test_a_backend_without_its_methods_cannot_be_made() -> None:
    class Half(RendezvousBackend):
        @property
        def name(self) -> str:
            return "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_arguments_become_settings_of_node_and_run() -> None:
    timeout = RendezvousTimeout(50 * SECOND, 60 * SECOND, 70 * SECOND, 4 * SECOND)
    asked = RendezvousSettings("run", 2, 4, timeout, 3 * SECOND, 5)
    run = run_settings(asked)
    assert (run.min_nodes, run.max_nodes, run.last_call_s) == (2, 4, 60)
    assert (run.suspect_after_s, run.lost_after_s) == (3, 15)
    assert run.max_restarts is None
    handler = DynamicRendezvousHandler.from_backend(
        "run", None, UsersBackend(), 2, 4, timeout=timeout, keep_alive_interval=3
    )
    plan = handler._plan
    assert plan.node.endpoint.kind is EndpointKind.LEDGER
    assert (plan.node.join_timeout_s, plan.node.connect_timeout_s) == (50, 50)
    assert plan.node.coordinator_silence_s == 5  # a heartbeat each second, and 4 s to answer it
    assert plan.close_timeout_s == 70


def test_an_endless_timeout_is_a_year() -> None:
    timeout = RendezvousTimeout(join=timedelta.max)
    handler = DynamicRendezvousHandler.from_backend(
        "run", None, UsersBackend(), 1, 1, timeout=timeout
    )
    assert handler.settings.timeout.join == timedelta.max
    assert handler._plan.node.join_timeout_s == 365 * 86_400


# -- from parameters -------------------------------------------------------------------------------


def params(**config: Any) -> RendezvousParameters:
    return RendezvousParameters("users", "somewhere", "run", 3, 6, **config)


def test_create_handler_takes_its_options_from_the_parameters() -> None:
    given = params(
        join_timeout="50",
        last_call_timeout="60",
        close_timeout=70,
        heartbeat_timeout=80,
        keep_alive_interval="7",
        keep_alive_max_attempt="2",
        timeout=900,  # torchrun's, always there
        is_host="perhaps",  # the backend's own
    )
    handler = create_handler(UntouchableStore(), Untouchable(), given)
    settings, timeout = handler.settings, handler.settings.timeout
    assert (handler.get_backend(), handler.get_run_id()) == ("users", "run")
    assert (settings.min_nodes, settings.max_nodes) == (3, 6)
    assert (timeout.join, timeout.last_call) == (50 * SECOND, 60 * SECOND)
    assert (timeout.close, timeout.heartbeat) == (70 * SECOND, 80 * SECOND)
    assert (settings.keep_alive_interval, settings.keep_alive_max_attempt) == (7 * SECOND, 2)


def test_create_handler_makes_it_by_from_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement of that one, as in torch's own tests, must be used here too."""

    def refuse(*arguments: Any, **given: Any) -> None:
        raise RendezvousError("not today")

    monkeypatch.setattr(DynamicRendezvousHandler, "from_backend", refuse)
    with pytest.raises(RendezvousError, match="not today"):
        create_handler(None, UsersBackend(), params())


@pytest.mark.parametrize(("given", "expected"), [({}, 50), ({"read_timeout": 7}, 7)])
def test_timeouts_limit_the_search_for_a_coordinator(
    given: dict[str, Any], expected: float
) -> None:
    handler = create_handler(None, UsersBackend(), params(join_timeout=50, **given))
    assert handler._plan.node.connect_timeout_s == expected


def test_create_handler_without_options_has_the_defaults() -> None:
    settings = create_handler(None, UsersBackend(), params()).settings
    assert settings.timeout.join == RendezvousTimeout().join
    assert settings.timeout.last_call == RendezvousTimeout().last_call
    assert settings.timeout.close == RendezvousTimeout().close
    assert settings.timeout.heartbeat == RendezvousTimeout().heartbeat
    assert (settings.keep_alive_interval, settings.keep_alive_max_attempt) == (5 * SECOND, 3)


@pytest.mark.parametrize(
    "key",
    [
        *("join_timeout", "last_call_timeout", "close_timeout", "heartbeat_timeout"),
        *("keep_alive_interval", "keep_alive_max_attempt", "read_timeout"),
    ],
)
def test_an_option_that_cannot_be_read_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' does not represent a valid integer value"):
        create_handler(None, UsersBackend(), params(**{key: "soon"}))
    with pytest.raises(ValueError, match=key.removesuffix("_timeout")):
        create_handler(None, UsersBackend(), params(**{key: "-1"}))


@pytest.mark.parametrize("key", ["keep_alive_interval", "keep_alive_max_attempt"])
def test_a_keep_alive_option_is_a_number(key: str) -> None:
    with pytest.raises(TypeError, match=key):
        create_handler(None, UsersBackend(), params(**{key: None}))


@pytest.mark.torch
def test_torchs_parameters_are_accepted() -> None:
    pytest.importorskip("torch")
    from torch.distributed.elastic.rendezvous import RendezvousParameters as Torchs

    given = Torchs("users", "somewhere", "run", 1, 2, join_timeout=5)
    assert create_handler(None, UsersBackend(), given).settings.timeout.join == 5 * SECOND


# -- names -----------------------------------------------------------------------------------------


def test_the_module_has_torchs_public_names() -> None:
    assert sorted(dynamic_rendezvous.__all__) == [
        *("DynamicRendezvousHandler", "RendezvousBackend", "RendezvousSettings"),
        *("RendezvousTimeout", "create_handler"),
    ]
    assert dynamic_rendezvous.Token is Any


def test_the_name_of_a_caller() -> None:
    assert get_method_name(1) == "test_the_name_of_a_caller"
    assert get_method_name(10_000) == "no_method_name"
