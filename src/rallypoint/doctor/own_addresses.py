"""This machine's addresses: those of its interfaces, and the one that other nodes would see."""

from __future__ import annotations

from typing import Final

from rallypoint import threads
from rallypoint.client.identity import check_interface, own_addresses
from rallypoint.client.interfaces import interfaces, source_towards
from rallypoint.core import addresses
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes
from rallypoint.errors import UsageError
from rallypoint.net import resolve

CHECK: Final = "addresses"
_SHOWN_MAX: Final = 16


def check(case: Case) -> Finding:
    """List the interfaces, and choose an address as a node does."""
    notes = Notes(CHECK)
    has = interfaces()
    for each in has[:_SHOWN_MAX]:
        notes.saw(f"{each.name}: {each.address}{'' if each.is_up else ' (down)'}")
    try:
        if case.interface is not None:
            check_interface(case.interface)
    except UsageError as error:
        notes.fail(error.message, error.hint)
    own = threads.run(own_addresses(case.endpoint, case.interface))
    seen = str(own[0]) if own else ""
    notes.facts |= {"seen_by_peers": seen, "own_addresses": [str(each) for each in own]}
    if case.local_addr is not None:
        seen = case.local_addr
        notes.facts["seen_by_peers"] = seen
        _check_local_addr(case, has, notes)
    elif not own and not case.is_on_this_machine:
        notes.fail(
            "this machine has no address that other machines can reach, only loopback",
            "bring up a network interface: `ip address` lists them; a container needs a network",
        )
    for host in case.hosts:
        _check_route(host, notes)
    where = f"other nodes reach this machine at {seen}" if seen else "this machine is alone"
    return notes.finding(where)


def _check_local_addr(case: Case, has: list[addresses.Interface], notes: Notes) -> None:
    given = case.local_addr or ""
    try:
        found = [each.host for each in resolve(given)]
    except (OSError, UnicodeError):
        found = []
    problem = addresses.local_addr_problem(found, has, is_alone=case.is_on_this_machine)
    if problem:
        advice = f"give --local-addr an address of this machine: {addresses.named(has)}"
        notes.fail(f"--local-addr {given} {problem}", advice)


def _check_route(host: str, notes: Notes) -> None:
    try:
        found = [(each.host, each.scope) for each in resolve(host)]
    except (OSError, UnicodeError):
        return  # the check of names says so
    sources = [source_towards(*each) for each in found]
    if found and not any(sources):
        advice = "`ip route` lists the routes: add one, or give an --endpoint in a network with one"
        notes.fail(f"no route leads from this machine to {host}", advice)
    for (address, _), source in zip(found, sources, strict=True):
        if source is not None:
            by = addresses.interface_of(source, interfaces())
            notes.saw(f"to {address}: from {source}{f' ({by})' if by else ''}")
