"""The backends: the built-in ones, and those of other installed packages.

The creator of a built-in backend imports its module. So the import of the registry costs nothing,
and a backend without its library fails only when it is used.

A package offers a backend by an entry point of the group `torchrun.handlers`. The entry's name is
the backend's. The object, called without arguments, returns the creator `params -> handler`. The
entries are read once, when a name is first used that is not registered.
"""

from __future__ import annotations

import logging
from typing import Final

from rallypoint.rendezvous.api import (
    RendezvousHandler,
    RendezvousHandlerCreator,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    rendezvous_handler_registry,
)

__all__ = ["get_rendezvous_handler"]

ENTRY_POINT_GROUP: Final = "torchrun.handlers"
"""torch's own group, so that an entry point serves torch's registry and this one."""

_log = logging.getLogger(__name__)


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """A new handler of the backend that `params` names, from this process's registry.

    Raises the errors of `RendezvousHandlerRegistry.create_handler`.
    """
    return rendezvous_handler_registry.create_handler(params)


# ---- built in ----------------------------------------------------------------------------------


def _create_static(params: RendezvousParameters) -> RendezvousHandler:
    from rallypoint.rendezvous import static_tcp_rendezvous

    return static_tcp_rendezvous.create_rdzv_handler(params)


def _create_c10d(params: RendezvousParameters) -> RendezvousHandler:
    from rallypoint.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

    backend, store = c10d_rendezvous_backend.create_backend(params)
    return dynamic_rendezvous.create_handler(store, backend, params)


def _create_etcd(params: RendezvousParameters) -> RendezvousHandler:
    from rallypoint.rendezvous import etcd_rendezvous

    return etcd_rendezvous.create_rdzv_handler(params)


def _create_etcd_v2(params: RendezvousParameters) -> RendezvousHandler:
    from rallypoint.rendezvous import dynamic_rendezvous, etcd_rendezvous_backend

    backend, store = etcd_rendezvous_backend.create_backend(params)
    return dynamic_rendezvous.create_handler(store, backend, params)


def _create_rallypoint(params: RendezvousParameters) -> RendezvousHandler:
    from rallypoint.rendezvous import rallypoint_rendezvous

    return rallypoint_rendezvous.create_handler(params)


_BUILT_IN: Final[dict[str, RendezvousHandlerCreator]] = {
    "etcd": _create_etcd,
    "etcd-v2": _create_etcd_v2,
    "c10d": _create_c10d,
    "static": _create_static,
    "rallypoint": _create_rallypoint,
}


def _register_default_handlers() -> None:
    for name, creator in _BUILT_IN.items():
        rendezvous_handler_registry.register(name, creator)


# ---- of other packages -------------------------------------------------------------------------


def register_out_of_tree_handlers(registry: RendezvousHandlerRegistry) -> None:
    """Register the backends of installed packages. A registered name is not replaced.

    A backend that cannot be loaded or registered causes a warning with its name and the error. The
    others are still registered.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        # Rallypoint's own entry is for torch's registry. In this one `rallypoint` is built in.
        if entry.name == "rallypoint":
            continue
        try:
            registry.register(entry.name, entry.load()())
        except Exception:  # noqa: BLE001  (foreign code: it may raise anything, and is reported)
            _log.warning(
                "the rendezvous backend '%s' of an installed package (%s) cannot be used",
                entry.name,
                entry.value,
                exc_info=True,
            )


def _register_out_of_tree_handlers() -> None:
    register_out_of_tree_handlers(rendezvous_handler_registry)
