"""PyTorch's elastic rendezvous, name for name, on Rallypoint.

The module and public names are those of `torch.distributed.elastic.rendezvous`, so a program only
has to change its import. The import does not need torch. A backend that needs torch raises an error
when it is used without it.

    from rallypoint.rendezvous import RendezvousParameters
    from rallypoint.rendezvous.registry import get_rendezvous_handler

    params = RendezvousParameters("rallypoint", "host0:29400", "job-42", min_nodes=2, max_nodes=4)
    handler = get_rendezvous_handler(params)
    info = handler.next_rendezvous()

The import registers the built-in backends by name only. The libraries of a backend, and the
backends of other installed packages (entry points of the group `torchrun.handlers`), are loaded at
first use.
"""

from rallypoint import logs
from rallypoint.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousHandlerCreator,
    RendezvousHandlerRegistry,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from rallypoint.rendezvous.registry import (
    _register_default_handlers,
    _register_out_of_tree_handlers,  # noqa: F401  (torch's package has it too)
)

for _name in ("", ".etcd_server", ".registry", ".static_tcp_rendezvous"):
    logs.tidy(f"rallypoint.rendezvous{_name}", lines=True)
_register_default_handlers()

__all__ = [
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
