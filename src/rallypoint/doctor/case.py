"""What is examined: an endpoint, this node's settings for it, and this machine's environment."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from rallypoint.core.values import Address, repr_without
from rallypoint.endpoints import Endpoint, EtcdPlace, PackagePlace
from rallypoint.security.access import Certificates
from rallypoint.settings import PortRange
from rallypoint.tokens import Keys

HOSTS_MAX = 8
"""How many hosts of an endpoint are examined."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """See above. Checks share it, and none changes it.

    `source`: where the endpoint comes from, as text. `keys`: this node's tokens; `no_keys`: why
    there are none, as message and hint. `certificates`: of a PKI, if the coordinator proves itself
    by those. `environ`: all variables of this process.
    """

    endpoint: Endpoint
    source: str = ""
    keys: Keys | None = None
    no_keys: tuple[str, str] = ("", "")
    token_file: str | None = None
    certificates: Certificates | None = None
    interface: str | None = None
    local_addr: str | None = None
    port_range: PortRange | None = None
    etcd_password: str = ""
    environ: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return repr_without(self, "etcd_password", "environ")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where a coordinator may listen, as far as the endpoint says; empty for a ledger."""
        ports = range(self.endpoint.spare_ports + 1)
        every = [Address(each.host, each.port + n) for n in ports for each in self.endpoint.hosts]
        return tuple(every[:HOSTS_MAX])

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names and addresses of the endpoint's hosts, also those of etcd, each once."""
        place = self.endpoint.place
        if isinstance(place, EtcdPlace):
            named = [each.rpartition(":")[0].strip("[]") for each in place.hosts]
        elif isinstance(place, PackagePlace):
            named = [place.host] if place.host else []
        else:
            named = [each.host for each in self.endpoint.hosts]
        return tuple(dict.fromkeys(named))[:HOSTS_MAX]

    @property
    def is_on_this_machine(self) -> bool:
        """Whether no other machine is expected, as far as the endpoint says."""
        from rallypoint.client.identity import may_be_one_machine

        return may_be_one_machine(self.endpoint) and self.endpoint.place is None
