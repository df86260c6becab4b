"""Options of the whole suite. pytest reads its options only from here, not from subfolders."""

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rallypoint.line_limits import LIMITS
from tests.kinds import Purity, examples
from tests.stalls import Stalls

# How long an example takes is the machine's affair; what has a bound has a test of it.
settings.register_profile(
    "rallypoint",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("rallypoint")

# A node at host:port creates a token in its user's home. Tests have a home of their own, and no
# two runs of them share one. The caches of libraries may stay where they are.
os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
_home = tempfile.TemporaryDirectory(prefix="rallypoint-home-")
os.environ["HOME"] = _home.name

# In the background of a shell, or under nohup, these signals are ignored, and every process that a
# test starts would ignore them too, even if a test sends them.
for each in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def _what_is_loaded_is_not_searched_for_garbage() -> None:
    # Many tests collect garbage, so that a ResourceWarning is theirs. To look at all that pytest,
    # the test files and torch have loaded takes 0.13 s each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _lines_of_other_tests_do_not_count() -> None:
    LIMITS.reset()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write the results of tests/core/scenarios again; read the diff before you commit it",
    )
    parser.addoption(
        "--rewrite-snapshots",
        action="store_true",
        help="write tests/cli/snapshots again; read the diff before you commit it",
    )
    parser.addoption(
        "--stalls",
        metavar="SEED",
        help="pause tests, and the processes that they start, at moments drawn from SEED",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Purity())
    if (seed := config.getoption("--stalls")) is not None:
        config.pluginmanager.register(Stalls(seed))
