"""What several files of tests of the core begin with."""

import pytest

from tests.core.store_calls import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()
