"""For tests of other packages. It needs pytest, which Rallypoint does not install.

`Cluster` has several nodes in the test's own process; as a fixture it is `rallypoint_cluster`.

`LedgerSuite` is the test suite for authors of a ledger:

    # test_my_ledger.py
    import pytest
    from rallypoint.testing import LedgerSuite
    from my_package import MyLedger

    class TestMyLedger(LedgerSuite):
        @pytest.fixture
        def connect(self, tmp_path):
            return lambda: MyLedger(tmp_path / "ledger")

`connect` returns a callable. Each of its calls returns another Ledger object, not yet open, for the
same ledger, which is new and empty for each test.
"""

import pytest

# Before the import, so that a failure shows the values that were compared.
pytest.register_assert_rewrite("rallypoint.testing.ledger_suite")

from rallypoint.testing.cluster import Cluster, ClusterNode, NodeKilledError  # noqa: E402
from rallypoint.testing.ledger_suite import Connect, LedgerSuite  # noqa: E402

__all__ = ["Cluster", "ClusterNode", "Connect", "LedgerSuite", "NodeKilledError"]
