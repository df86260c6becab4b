"""When `rallypoint serve` reads its tokens again: on SIGHUP, when their file changes, and each day.

It never ends by that. All other options are read once, at the start. A file that cannot be used
changes nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Final, Generic, TypeVar

from rallypoint import logs, settings
from rallypoint.errors import UsageError
from rallypoint.security.access import CertificateFileError
from rallypoint.security.files import signatures
from rallypoint.threads import call_from_loop

S = TypeVar("S", bound=Sized)

_log = logs.tidy("rallypoint.serve")

SIGHUP: Final = "SIGHUP"
CHANGED: Final = "a file of tokens or certificates has changed"
NEXT_DAY: Final = "a new certificate is due"
"""Why the tokens are read again."""
WATCH_S: Final = 5.0
"""How often to look at the file, in seconds."""
RENEW_S: Final = 86_400.0
"""How often to read a state directory at the latest, in seconds. The certificate that is made from
it then counts much longer.
"""
NO_FILE: Final = (
    "SIGHUP: there is no token file, so nothing was read; to change a token in the environment, "
    "restart"
)


class Reloader(Generic[S]):
    """Reads the tokens again on request. Owned by one event loop.

    `read`: the tokens of the file, with the checks of the start; raises UsageError. None: there is
    no file. `use`: replaces the tokens, and returns how many connections use another one. It is
    called in the loop, so all that may block belongs into `read`. If it raises, nothing changes.

    The file is read in a thread, because a file system may hang, and the loop must not wait for it.
    """

    def __init__(self, read: Callable[[], S] | None, use: Callable[[S], int]) -> None:
        self._read = read
        self._use = use
        self._is_reading = False
        self._is_asked_again = False
        self._why = SIGHUP

    def ask(self, why: str = SIGHUP) -> None:
        """Read the file again, after a read that is under way. Call it in the loop."""
        if self._read is None:
            _log.warning(NO_FILE)
        elif self._is_reading:
            self._is_asked_again = True
            _log.warning("%s: the token file is still being read; it will be read once more", why)
        else:
            self._is_reading, self._why = True, why
            try:
                reading = call_from_loop(self._read)
            except RuntimeError as error:  # the system has no thread now
                self._finish(error)
            else:
                reading.add_done_callback(
                    lambda _: self._finish(reading.exception() or reading.result())
                )

    def _finish(self, outcome: S | BaseException) -> None:
        self._is_reading = False
        try:
            if isinstance(outcome, BaseException):
                self._tell_problem(outcome)
            else:
                self._tell(len(outcome), self._use(outcome))
        except (ValueError, OSError) as error:
            self._tell_problem(error)
        finally:
            # Any error only fails this request. Later ones are still handled.
            if self._is_asked_again:
                self._is_asked_again = False
                self.ask()

    def _tell_problem(self, error: BaseException) -> None:
        problem = error if isinstance(error, UsageError) else _not_read(error)
        hint = f" (hint: {problem.hint})" if problem.hint else ""
        told = (self._why, problem.message, hint)
        _log.error("%s: the tokens stay as they were: %s%s", *told)

    def _tell(self, count: int, others: int) -> None:
        accepted = "1 token is" if count == 1 else f"{count} tokens are"
        stay = ""
        if others:
            are_one = others == 1
            what = "connection" if are_one else "connections"
            ends = "stays until it ends" if are_one else "stay until they end"
            stay = f"; {others} {what} with another token {ends}"
        what = "%s: the token file was read again: %s accepted%s"
        _log.info(what, self._why, accepted, stay)


class Watch:
    """Looks at a token file, a state directory and certificates, in a thread of its own.

    `ask` is called in that thread with the reason to read it again. A file system that hangs holds
    up nothing else. `seen`: the `signatures` of `paths` before they were read last; None: as they
    are at the start.
    """

    def __init__(
        self,
        paths: tuple[Path, ...],
        ask: Callable[[str], object],
        seen: tuple[object, ...] | None = None,
    ) -> None:
        self._paths = paths
        self._before = seen
        self._ask = ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rallypoint-tokens", daemon=True)

    def start(self) -> None:
        """Begin. Raises RuntimeError if the system grants no thread."""
        self._thread.start()

    def stop(self) -> None:
        """Call `ask` no more. Idempotent; it does not wait for a look that hangs."""
        self._over.set()

    def _look(self) -> None:
        seen, asked_s = self._before or signatures(self._paths), time.monotonic()
        while not self._over.wait(WATCH_S):
            now, now_s = signatures(self._paths), time.monotonic()
            has_state = any(settings.is_folder(str(each)) for each in self._paths)
            is_due = has_state and now_s - asked_s >= RENEW_S
            if (now == seen or now is None) and not is_due:
                continue
            why, asked_s = (NEXT_DAY if now == seen else CHANGED), now_s
            seen = now
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._ask(why)


def _not_read(error: BaseException) -> UsageError:
    why = str(error) if isinstance(error, CertificateFileError) else repr(error)
    return UsageError(f"the file was not read: {why}", hint="send SIGHUP again")
