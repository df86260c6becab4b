"""SIGHUP to `rallypoint serve`: it reads its token file again, and never ends by that.

All other options are read once, at the start. A file that cannot be used changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rallypoint import logs
from rallypoint.errors import UsageError
from rallypoint.threads import call_from_loop

_log = logs.tidy("rallypoint.serve")

NO_FILE: Final = (
    "SIGHUP: there is no token file, so nothing was read; to change a token in the environment, "
    "restart"
)


class Reloader:
    """Reads the tokens again on request. Owned by one event loop.

    `read`: the tokens of the file, with the checks of the start; raises UsageError. None: there is
    no file. `use`: replaces the tokens, and returns how many connections use another one.

    The file is read in a thread, because a file system may hang, and the loop must not wait for it.
    """

    def __init__(
        self, read: Callable[[], tuple[str, ...]] | None, use: Callable[[tuple[str, ...]], int]
    ) -> None:
        self._read = read
        self._use = use
        self._is_reading = False
        self._is_asked_again = False

    def ask(self) -> None:
        """Read the file again, after a read that is under way. Call it in the loop."""
        if self._read is None:
            _log.warning(NO_FILE)
        elif self._is_reading:
            self._is_asked_again = True
            _log.warning("SIGHUP: the token file is still being read; it will be read once more")
        else:
            self._is_reading = True
            try:
                reading = call_from_loop(self._read)
            except RuntimeError as error:  # the system has no thread now
                self._finish(error)
            else:
                reading.add_done_callback(
                    lambda _: self._finish(reading.exception() or reading.result())
                )

    def _finish(self, outcome: tuple[str, ...] | BaseException) -> None:
        self._is_reading = False
        if isinstance(outcome, BaseException):
            # Any error only fails this request. Later ones are still handled.
            problem = outcome if isinstance(outcome, UsageError) else _not_read(outcome)
            hint = f" (hint: {problem.hint})" if problem.hint else ""
            _log.error("SIGHUP: the tokens stay as they were: %s%s", problem.message, hint)
        else:
            self._tell(len(outcome), self._use(outcome))
        if self._is_asked_again:
            self._is_asked_again = False
            self.ask()

    def _tell(self, count: int, others: int) -> None:
        accepted = "1 token is" if count == 1 else f"{count} tokens are"
        stay = ""
        if others:
            are_one = others == 1
            what = "connection" if are_one else "connections"
            ends = "stays until it ends" if are_one else "stay until they end"
            stay = f"; {others} {what} with another token {ends}"
        _log.info("SIGHUP: the token file was read again: %s accepted%s", accepted, stay)


def _not_read(error: BaseException) -> UsageError:
    return UsageError(f"the file was not read: {error!r}", hint="send SIGHUP again")
