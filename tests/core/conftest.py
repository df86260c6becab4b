"""What several files of tests of the core begin with."""

import pytest

from tests.core.store_client import StoreClient


@pytest.fixture
def client() -> StoreClient:
    return StoreClient()
