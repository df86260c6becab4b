"""Rallypoint: elastic rendezvous for distributed Python jobs.

    import rallypoint

    with rallypoint.join("job-42", "host0:29400", min_nodes=2, max_nodes=4) as run:
        for world in run.worlds():
            with world:
                ...  # world.rank, world.size, world.store, world.barrier(name), world.change

The asynchronous API is `rallypoint.aio`; the command line is `rallypoint --help`. Importing this
module loads little: each part is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from rallypoint import aio
    from rallypoint.client.blocking import Portal, Run, Store, World
    from rallypoint.client.fencing import FencingToken
    from rallypoint.client.newest import Newest
    from rallypoint.client.options import JoinOptions
    from rallypoint.client.steps import WorldDrain
    from rallypoint.client.waiting import StillWaiting
    from rallypoint.client.world import Store as AsyncStore
    from rallypoint.core.reasons import Waiting
    from rallypoint.core.values import (
        Change,
        ChangeKind,
        CloseRecord,
        Failure,
        FailureKind,
        Outcome,
        RoundMember,
    )
    from rallypoint.errors import (
        CoordinatorError,
        CoordinatorLostError,
        EndpointError,
        EvictedError,
        FencedError,
        ForkedProcessError,
        JoinTimeoutError,
        LauncherError,
        LaunchError,
        LedgerAccessError,
        LedgerCorruptError,
        LedgerError,
        LedgerForeignError,
        LedgerFormatError,
        LedgerFullError,
        LedgerLimitError,
        LedgerReplacedError,
        LedgerUnfitError,
        LedgerUnreachableError,
        LimitError,
        LogDirectoryError,
        NameTakenError,
        NotACoordinatorError,
        PlatformError,
        ProgramNotFoundError,
        RallypointError,
        RefusedError,
        RoundBrokenError,
        RunClosedError,
        RunLostError,
        SettingsConflictError,
        StoreError,
        StoreTimeoutError,
        SupersededError,
        TokenError,
        UnreachableError,
        UntrustedCoordinatorError,
        UsageError,
        VersionError,
        WorkerStartError,
    )

_BLOCKING = "rallypoint.client.blocking"
_VALUES = "rallypoint.core.values"
_ERRORS = "rallypoint.errors"

_WHERE = {
    "Run": _BLOCKING,
    "World": _BLOCKING,
    "Store": _BLOCKING,
    "FencingToken": "rallypoint.client.fencing",
    "JoinOptions": "rallypoint.client.options",
    "Newest": "rallypoint.client.newest",
    "StillWaiting": "rallypoint.client.waiting",
    "Waiting": "rallypoint.core.reasons",
    "WorldDrain": "rallypoint.client.steps",
    "Change": _VALUES,
    "ChangeKind": _VALUES,
    "CloseRecord": _VALUES,
    "Failure": _VALUES,
    "FailureKind": _VALUES,
    "Outcome": _VALUES,
    "RoundMember": _VALUES,
    "CoordinatorError": _ERRORS,
    "CoordinatorLostError": _ERRORS,
    "EndpointError": _ERRORS,
    "EvictedError": _ERRORS,
    "FencedError": _ERRORS,
    "ForkedProcessError": _ERRORS,
    "JoinTimeoutError": _ERRORS,
    "LaunchError": _ERRORS,
    "LauncherError": _ERRORS,
    "LedgerAccessError": _ERRORS,
    "LedgerCorruptError": _ERRORS,
    "LedgerError": _ERRORS,
    "LedgerForeignError": _ERRORS,
    "LedgerFormatError": _ERRORS,
    "LedgerFullError": _ERRORS,
    "LedgerLimitError": _ERRORS,
    "LedgerReplacedError": _ERRORS,
    "LedgerUnfitError": _ERRORS,
    "LedgerUnreachableError": _ERRORS,
    "LimitError": _ERRORS,
    "LogDirectoryError": _ERRORS,
    "NameTakenError": _ERRORS,
    "NotACoordinatorError": _ERRORS,
    "PlatformError": _ERRORS,
    "ProgramNotFoundError": _ERRORS,
    "RallypointError": _ERRORS,
    "RefusedError": _ERRORS,
    "RoundBrokenError": _ERRORS,
    "RunClosedError": _ERRORS,
    "RunLostError": _ERRORS,
    "SettingsConflictError": _ERRORS,
    "StoreError": _ERRORS,
    "StoreTimeoutError": _ERRORS,
    "SupersededError": _ERRORS,
    "TokenError": _ERRORS,
    "UnreachableError": _ERRORS,
    "UntrustedCoordinatorError": _ERRORS,
    "UsageError": _ERRORS,
    "VersionError": _ERRORS,
    "WorkerStartError": _ERRORS,
}
"""Where each public name is defined; loaded at its first use."""


def join(
    run_id: str | None = None,
    endpoint: str | None = None,
    *,
    min_nodes: int | None = None,
    max_nodes: int | None = None,
    token: str | None = None,
    labels: Mapping[str, str] | None = None,
    ledger: str | None = None,
    on_waiting: Callable[[StillWaiting], None] | None = None,
    **options: Unpack[JoinOptions],
) -> Run:
    """Join a run, and wait until the coordinator lets this node in.

    In a worker of `rallypoint run`, call it without arguments: the agent is the node.

    Args:
        run_id: the run's name, the same on all nodes. Or RALLYPOINT_RUN_ID.
        endpoint: where the nodes meet: None for this process alone, `host:port`, or
            `http://host:port` of a `rallypoint serve`. Or RALLYPOINT_ENDPOINT.
        min_nodes: the fewest nodes of a round. Alone, it is also the most.
        max_nodes: the most nodes of a round.
        token: the coordinator's token. Or RALLYPOINT_TOKEN, or `token_file`.
        labels: names and texts about this node, for the other members.
        ledger: instead of `endpoint`, the ledger through which the nodes elect their coordinator:
            `file:DIR`, `etcd://...`, or the URL of a ledger that an installed package registers.
        on_waiting: called while this node waits for the coordinator or for a round, with the reason
            and the time: after about 2 s, and then at growing intervals of up to a minute. It runs
            in Rallypoint's thread, so it must be short and must not call Rallypoint. In a worker of
            `rallypoint run` the agent waits, so it is not called.
        options: any other setting that `rallypoint env` lists, by its name there: `node_name`,
            `join_timeout_s`, `last_call_s`, `suspect_after_s`, ... Durations are in seconds.
            `check` may also be a function: it is called in a thread of its own before each world,
            and returns why this machine is unfit; None or "": it is fit (docs/restarts.md).
            `rallypoint.JoinOptions` has all of them.

    Raises:
        UsageError: a wrong argument or variable.
        UnreachableError: no answer within `connect_timeout_s`; it lists what was tried.
        UntrustedCoordinatorError: the server there is not the coordinator that the token names.
        RefusedError: the coordinator refused this node; the class shows the reason.
    """
    from rallypoint.client import blocking, join_plan
    from rallypoint.client.border import BORDER

    with BORDER:
        planned = join_plan.plan(
            run_id,
            endpoint,
            min_nodes=min_nodes,
            max_nodes=max_nodes,
            token=token,
            labels=labels,
            ledger=ledger,
            on_waiting=on_waiting,
            options=options,
        )
        return blocking.join(planned, _store_for_torch)


def _store_for_torch(portal: Portal, store: AsyncStore) -> Store | None:
    """See blocking.StoreForTorch. It loads the bridge only if torch is imported."""
    from rallypoint.rendezvous import _torch_bridge

    return _torch_bridge.world_store(portal, store)


def __getattr__(name: str) -> Any:
    if name == "aio":
        from importlib import import_module

        return import_module("rallypoint.aio")
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'rallypoint' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, "aio"})


__all__ = [
    "Change",
    "ChangeKind",
    "CloseRecord",
    "CoordinatorError",
    "CoordinatorLostError",
    "EndpointError",
    "EvictedError",
    "Failure",
    "FailureKind",
    "FencedError",
    "FencingToken",
    "ForkedProcessError",
    "JoinOptions",
    "JoinTimeoutError",
    "LaunchError",
    "LauncherError",
    "LedgerAccessError",
    "LedgerCorruptError",
    "LedgerError",
    "LedgerForeignError",
    "LedgerFormatError",
    "LedgerFullError",
    "LedgerLimitError",
    "LedgerReplacedError",
    "LedgerUnfitError",
    "LedgerUnreachableError",
    "LimitError",
    "LogDirectoryError",
    "NameTakenError",
    "Newest",
    "NotACoordinatorError",
    "Outcome",
    "PlatformError",
    "ProgramNotFoundError",
    "RallypointError",
    "RefusedError",
    "RoundBrokenError",
    "RoundMember",
    "Run",
    "RunClosedError",
    "RunLostError",
    "SettingsConflictError",
    "StillWaiting",
    "Store",
    "StoreError",
    "StoreTimeoutError",
    "SupersededError",
    "TokenError",
    "UnreachableError",
    "UntrustedCoordinatorError",
    "UsageError",
    "VersionError",
    "Waiting",
    "WorkerStartError",
    "World",
    "WorldDrain",
    "__version__",
    "aio",
    "join",
]
