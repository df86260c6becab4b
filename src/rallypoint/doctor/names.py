"""Names both ways: this machine's own, and those of the endpoint's hosts."""

from __future__ import annotations

import socket
import time
from typing import Final

from rallypoint.client.interfaces import interfaces
from rallypoint.core.addresses import is_loopback, literal
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, took_text
from rallypoint.net import describe_os_error, resolve

CHECK: Final = "names"
SLOW_S: Final = 1.0
"""A look-up that takes longer delays each node's start, and often means a dead DNS server."""
_SHOWN_MAX: Final = 4


def check(case: Case) -> Finding:
    """Look up the own name and the endpoint's hosts, and the addresses back."""
    notes = Notes(CHECK)
    own = socket.gethostname()
    _check_own(own, notes, is_alone=case.is_on_this_machine)
    for host in case.hosts:
        _check_host(host, notes)
    return notes.finding(
        "each name that is used has an address" if case.hosts else f"this machine is {own}"
    )


def _check_own(name: str, notes: Notes, *, is_alone: bool) -> None:
    found, problem = _look_up(name, notes)
    notes.facts["own_name"], notes.facts["own_addresses"] = name, found
    if problem:
        text = f"this machine does not know the address of its own name {name}: {problem}"
        advice = (
            f"add {name} to /etc/hosts or DNS, if programs of the job use names; "
            "Rallypoint itself uses addresses"
        )
        if is_alone:
            notes.saw(text)
        else:
            notes.warn(text, advice)
        return
    here = {literal(each.address) for each in interfaces()}
    foreign = [each for each in found if not is_loopback(each) and literal(each) not in here]
    if foreign and here:
        notes.warn(
            f"this machine's own name {name} leads to {foreign[0]}, which is another machine's",
            f"correct {name} in /etc/hosts or DNS: nodes that use the name go astray",
        )
    notes.saw(f"own name {name}: {_listed(found)}")


def _check_host(host: str, notes: Notes) -> None:
    if literal(host) is not None:
        notes.saw(f"endpoint's host {host}: {_back(host) or 'no name is known for it'}")
        return
    found, problem = _look_up(host, notes)
    notes.facts.setdefault("hosts", {})[host] = found
    if problem:
        notes.fail(
            f"the endpoint's host {host} has no address here: {problem}",
            f"check the spelling of {host}, /etc/hosts and DNS; or give its address as --endpoint",
        )
        return
    notes.saw(f"endpoint's host {host}: {_listed(found)}")


def _look_up(name: str, notes: Notes) -> tuple[list[str], str]:
    """The addresses of a name, or why there are none."""
    began_s = time.monotonic()
    try:
        found, problem = [each.host for each in resolve(name)], ""
    except (OSError, UnicodeError) as error:
        found, problem = [], describe_os_error(error)
    took_s = time.monotonic() - began_s
    if took_s > SLOW_S:
        notes.warn(
            f"the look-up of {name} took {took_text(took_s)}",
            "check the DNS servers in /etc/resolv.conf: one of them does not answer",
        )
    return list(dict.fromkeys(found)), problem


def _listed(found: list[str]) -> str:
    shown = [f"{each} ({_back(each)})" if _back(each) else each for each in found[:_SHOWN_MAX]]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return ", ".join(shown) + more


def _back(address: str) -> str:
    """The name of an address; "" if there is none."""
    try:
        return socket.gethostbyaddr(address)[0]
    except (OSError, UnicodeError):
        return ""
