"""The token that a node sends to a coordinator, and the errors about it.

`rallypoint.tokens` decides which token a process has. This file uses it: for each dial, for a
second try with the token in this user's home, and in the error of a search that found nothing. The
connector decides where and when to dial.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from rallypoint import errors, runtime, tokens
from rallypoint.client.dialing import Attempts, Patience, dial
from rallypoint.client.network import Connection
from rallypoint.core.election import Lease
from rallypoint.core.values import Address
from rallypoint.endpoints import is_loopback
from rallypoint.security import token_form
from rallypoint.security.access import Access
from rallypoint.settings import EndpointKind, NodeSettings, certificates_for

_log = logging.getLogger("rallypoint.client")

HOME_WITHIN_S: Final = 10.0
"""How many seconds a read of the token in this user's home may take, as it can be on a file server.
"""


class Credentials:
    """One node's token. Call `find` first, in the event loop of all other calls."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.keys = tokens.Keys(tokens.NONE)
        self._of_lease: tokens.KnownToken | None = None
        """The token in an elected coordinator's lease, if this node sent that one last."""
        self._has_warned = False

    @property
    def access(self) -> Access:
        """How this node dials the coordinator of its endpoint."""
        return Access(self.keys.token, certificates_for(self.settings, self.keys.token))

    async def find(self) -> None:
        """Find the token: see `tokens`. Raises UsageError if it cannot be read, or not in time."""
        node = self.settings
        if node.token or node.insecure or node.endpoint.kind is not EndpointKind.HOST:
            self.keys = tokens.Keys.of_node(node)
            return
        try:
            # In a thread: a home may be on a file server that hangs.
            async with asyncio.timeout(HOME_WITHIN_S):
                self.keys = await runtime.in_thread(lambda: tokens.Keys.of_node(node))
        except TimeoutError:
            raise errors.UsageError(
                f"{tokens.SHOWN} could not be read within {HOME_WITHIN_S:g} s",
                hint=f"check that its file server answers; or {tokens.EXPORT_LINE}",
            ) from None

    async def dial(
        self, target: Address, attempts: Attempts, limit_s: float, patience: Patience
    ) -> Connection | None:
        """Like `dialing.dial`, with this node's token, or the home's if the coordinator needs it.

        Raises TokenError, which names both tokens.
        """
        while True:
            refused: errors.TokenError | None
            try:
                connection = await dial(target, self.access, attempts, limit_s, patience)
                refused = attempts.refused if connection is None else None
                needs = attempts.untrusted if connection is None else None
            except errors.TokenError as error:
                connection, refused, needs = None, error, None
            except errors.UntrustedCoordinatorError as error:
                if not await self._takes_home(error):
                    raise self.keys.explained_authority(error) from None
                continue
            if not await self._takes_home(refused or needs):
                break
        if refused is not None and patience is not Patience.ANY:
            raise self.keys.explained(refused) from None
        return connection

    async def dial_one_of_several(
        self, target: Address, attempts: Attempts, limit_s: float
    ) -> Connection | None:
        """Dial an address where the coordinator of a stranger may be, which must not get the token.

        It is sent only if the coordinator refuses a request without one and names its fingerprint.
        (A token that can be guessed has none.)
        """
        # By TLS it is sent only to a coordinator that proves that it is this token's.
        if self.keys.token and not token_form.names_ca(self.keys.token):
            connection = await dial(target, Access(), attempts, limit_s, Patience.ANY)
            refused = attempts.refused
            if connection is not None or refused is None:
                return connection
            if refused.fingerprint != tokens.fingerprint(self.keys.token):
                attempts.answers = {str(target): "it needs another token than this node's"}
                return None
        return await self.dial(target, attempts, limit_s, Patience.ANY)

    async def _takes_home(
        self, refused: errors.TokenError | errors.UntrustedCoordinatorError | None
    ) -> bool:
        if refused is None or not self.keys.needs_look:
            return False
        try:
            async with asyncio.timeout(HOME_WITHIN_S):
                return await runtime.in_thread(lambda: self.keys.takes_home(refused))
        except TimeoutError:
            return False

    def for_lease(self, lease: Lease) -> Access:
        """As `access_of`, for the owner of the run, which later errors name."""
        access = self.access_of(lease)
        if access.token and access.token != self.settings.token:
            where = "the coordinator's lease"
            self._of_lease = tokens.KnownToken(lease.token, tokens.Origin.LEASE, where)
        return access

    def access_of(self, lease: Lease) -> Access:
        """How to dial a coordinator with this lease: by this node's own token, or the lease's."""
        own = self.settings.token
        if lease.token and not own:
            return Access(lease.token)
        return Access(own, certificates_for(self.settings, own))

    def unreachable(self, attempts: Attempts, tried_s: float) -> errors.CoordinatorError:
        """The error of a search that found nothing. It compares the tokens if one was refused."""
        error = attempts.error(tried_s)
        if attempts.refused is None or not isinstance(error, errors.UnreachableError):
            return error
        own = self._of_lease or self.keys.known
        return errors.UnreachableError(
            f"{error.message}: {tokens.compared(attempts.refused, own)}",
            hint=tokens.what_to_do(attempts.refused, own),
            attempts=error.attempts,
        )

    def is_open(self, connection: Connection) -> bool:
        """Whether the coordinator admits everybody, although it should need this node's token."""
        origin, host = self.keys.known.origin, connection.address.host
        is_wanted = origin == tokens.Origin.GIVEN or not is_loopback(host)
        return connection.asks_no_token and bool(self.keys.token) and is_wanted

    def warn_if_open(self, connection: Connection) -> None:
        """Log once that a coordinator admits everybody, although this node has a token."""
        if not self.is_open(connection) or self._has_warned:
            return
        self._has_warned = True
        known = self.keys.known
        _log.warning(
            "the coordinator at %s asks for no token: anyone who reaches it can join run %r and "
            "end it (this node's token is from %s)",
            connection.address,
            self.settings.run_id,
            known.place,
        )
