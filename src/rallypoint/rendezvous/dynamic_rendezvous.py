"""What a rendezvous backend must offer, under torch's names.

A backend keeps one value, with compare-and-swap; everything else of a rendezvous stands on that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

__all__ = ["RendezvousBackend", "Token"]

Token: TypeAlias = Any
"""Names one writing of a backend's value. Only the backend can read it."""


class RendezvousBackend(ABC):
    """One value that all nodes of a run share, with compare-and-swap."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The backend's name."""

    @abstractmethod
    def get_state(self) -> tuple[bytes, Token] | None:
        """The value and its token; None if there is none.

        Raises:
            RendezvousConnectionError: the backend does not answer.
            RendezvousStateError: what it holds cannot be read.
        """

    @abstractmethod
    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """Replace the value that has this token; without a token, create it if there is none.

        A token that is stale or makes no sense changes nothing. Returns what is there then, its
        token, and whether that is `state` as this call has set it. None leaves the caller to read
        it back.

        Raises:
            RendezvousConnectionError: the backend does not answer.
            RendezvousStateError: what it holds cannot be read.
        """
