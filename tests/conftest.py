"""Options of the whole suite. pytest reads its options only from here, not from subfolders."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write the results of tests/core/scenarios anew; read the diff before you commit it",
    )
    parser.addoption(
        "--rewrite-snapshots",
        action="store_true",
        help="write tests/cli/snapshots anew; read the diff before you commit it",
    )
