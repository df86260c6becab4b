"""The worker as a node itself, which writes down what its machine decides.

FAILOVER_LOG=file python native_node.py PAUSE_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from rallypoint.client import run_client
from tests.chaos.worker import main
from tests.failover.logged_agent import LoggedNode

if __name__ == "__main__":
    vars(run_client)["Node"] = LoggedNode
    main(Path(sys.argv[1]), Path("/nonexistent"))
