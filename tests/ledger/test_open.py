"""Which ledger an endpoint opens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rallypoint.endpoints import parse_endpoint, parse_ledger
from rallypoint.errors import EndpointError, LedgerUnreachableError
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.ledger.open import open_ledger


def test_a_folder_is_a_file_ledger_and_two_handles_are_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_ledger(parse_endpoint(f"file://{tmp_path}/x")) as first:
            assert isinstance(first, FileLedger)
            async with open_ledger(parse_ledger(f"file:{tmp_path}/x")) as second:
                assert second.ledger_id == first.ledger_id

    asyncio.run(main())


@pytest.mark.sockets
def test_an_etcd_ledger_connects_when_it_is_opened() -> None:
    async def main() -> None:
        ledger = open_ledger(parse_endpoint("etcd://127.0.0.1:1/p?user=me"), "secret")
        assert isinstance(ledger, EtcdLedger)
        with pytest.raises(LedgerUnreachableError):
            await ledger.open()
        await ledger.aclose()

    asyncio.run(main())


def test_text_that_is_no_ledger_is_refused() -> None:
    for text in (None, "node0:1", "http://node0"):
        with pytest.raises(EndpointError, match="is not a ledger"):
            open_ledger(parse_endpoint(text))


@pytest.mark.processes
def test_an_engine_is_imported_only_when_used() -> None:
    program = (
        "import sys\n"
        "from rallypoint.endpoints import parse_endpoint\n"
        "from rallypoint.ledger.open import open_ledger\n"
        "assert not [m for m in sys.modules if m.startswith('rallypoint.ledger.etcd.ledger')]\n"
        "open_ledger(parse_endpoint('file:///tmp/x'))\n"
        "assert 'aiohttp' not in sys.modules and 'rallypoint.ledger.file.ledger' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
