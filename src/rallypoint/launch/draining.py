"""An agent that drains: what asked it to leave is held back while the workers agree on a last step.

`machine` decides when the departure begins. This file keeps what is known about it.
"""

from __future__ import annotations

import msgspec


class HeldDeparture(msgspec.Struct):
    """A departure that is held back, from `began_s` until `due_s` at the latest.

    `number`: the signal that asked for it; None: an operator or a notice did. `left_s`: see
    agent_events.Signalled. `is_patient`: it is held back also if the workers cannot agree, as the
    machine is there until then. `refused`: why no step can be agreed on, as the coordinator says;
    "": it has not said so.
    """

    reason: str
    began_s: float
    due_s: float
    number: int | None = None
    left_s: float | None = None
    is_patient: bool = False
    refused: str = ""
