"""Bugs that are planted in the shipped code on purpose: would the tools have found them?

    python -m tests.simulation.planted                   all of them, from seed 0
    python -m tests.simulation.planted NAME --seeds 5000    one, and how far to look

`planting` replaces functions. The bugs are in `protocol_faults` and `mended` (those of earlier
releases), `literature` (those of other systems), `likely` (those that a change could bring in),
`nodes`, `agents`, `agreements`, `hanging`, `guilty`, `examined` and `witnesses`.
"""

import msgspec

from tests.simulation.planted.agents import AGENTS
from tests.simulation.planted.agreements import AGREEMENTS
from tests.simulation.planted.examined import EXAMINED
from tests.simulation.planted.guilty import GUILTY
from tests.simulation.planted.hanging import HANGING
from tests.simulation.planted.known import KNOWN
from tests.simulation.planted.likely import LIKELY
from tests.simulation.planted.literature import LITERATURE
from tests.simulation.planted.membership import MEMBERSHIP
from tests.simulation.planted.mended import MENDED
from tests.simulation.planted.nodes import NODES
from tests.simulation.planted.protocol_faults import PROTOCOL_FAULTS
from tests.simulation.planted.witnesses import WITNESSES

_ALL = (
    *PROTOCOL_FAULTS,
    *LITERATURE,
    *LIKELY,
    *MEMBERSHIP,
    *MENDED,
    *AGENTS,
    *NODES,
    *EXAMINED,
    *WITNESSES,
    *AGREEMENTS,
    *HANGING,
    *GUILTY,
)
BUGS = {
    bug.name: msgspec.structs.replace(bug, seed=KNOWN[bug.name].seed) if bug.name in KNOWN else bug
    for bug in _ALL
}
assert len(BUGS) == len(_ALL), "a name is used twice"
