"""Whether the coordinators speak this release's version of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from rallypoint import threads
from rallypoint.client import transport
from rallypoint.core.values import Address, NodeInfo, RunSettings, Stamp
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped
from rallypoint.doctor.ports import Asked
from rallypoint.errors import NotACoordinatorError, TokenError
from rallypoint.net import describe_os_error, look_up
from rallypoint.security.access import Access
from rallypoint.wire import messages

CHECK: Final = "wire"
WITHIN_S: Final = 4.0
"""How long a coordinator may take to answer, in seconds."""
NO_VERSION: Final = 0
"""No coordinator accepts it. So the question adds no node to any run."""


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """Open the connection of a node, and ask with a version that is always refused."""
    found = [each for one in asked for each in one.answers if each.is_coordinator]
    if not found:
        return skipped(CHECK, "no coordinator has answered")
    notes = Notes(CHECK)
    token = case.keys.token if case.keys is not None else ""
    access = Access(token, case.certificates)
    for where in dict.fromkeys(each.where for each in found):
        threads.run(_ask(where, access.to(where.host), notes))
    return notes.finding(f"the coordinator speaks wire version {messages.VERSION}")


async def _ask(where: Address, access: Access, notes: Notes) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            refused = await _refusal(where, access)
    except TimeoutError:
        text = f"the coordinator at {where} did not answer a node within {WITHIN_S:g} s"
        notes.fail(text, "look at its log, and whether a proxy on the way lets WebSockets through")
        return
    except TokenError:
        notes.missed(f"{where} was not asked, because it refuses the token")
        return
    except NotACoordinatorError as error:
        advice = "a proxy on the way has to let WebSockets through (Upgrade and Connection headers)"
        notes.fail(f"{where} takes no nodes: {error.message}", advice)
        return
    except OSError as error:
        notes.fail(f"{where}: {describe_os_error(error)}", "look at the coordinator's log")
        return
    _judge(where, messages.accepted_versions(refused), notes)


def _judge(where: Address, accepted: range | None, notes: Notes) -> None:
    if accepted is None:
        notes.missed(f"the coordinator at {where} does not tell its wire versions")
        return
    notes.facts.setdefault("accepted", {})[str(where)] = [accepted[0], accepted[-1]]
    own = range(messages.VERSION_MIN, messages.VERSION + 1)
    text = f"the coordinator at {where} accepts wire version {accepted[0]}"
    text += f" to {accepted[-1]}" if len(accepted) > 1 else ""
    if messages.VERSION in accepted or set(own) & set(accepted):
        notes.saw(text)
    else:
        notes.fail(f"{text}; this node speaks {messages.VERSION}", messages.UPDATE_HINT)


async def _refusal(where: Address, access: Access) -> messages.FromCoordinator | None:
    """The first message of the coordinator; None if it closes without one."""
    found = await look_up(where.host, where.port, WITHIN_S)
    connection = await transport.connect(where, found[0].sockaddr, found[0].family, access)
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes | None] = loop.create_future()

    def settle(data: bytes | None) -> None:
        if not answered.done():
            answered.set_result(data)

    connection.on_message = settle
    connection.on_closed = lambda reason: settle(None)
    try:
        connection.send(messages.encode(_question()))
        data = await answered
    finally:
        connection.close("the doctor has its answer")
        await connection.wait_closed()
    return None if data is None else messages.decode_from_coordinator(data)


def _question() -> messages.Attach:
    info = NodeInfo("doctor", 1, "doctor")
    return messages.Attach(Stamp(), NO_VERSION, "doctor", info, RunSettings())
