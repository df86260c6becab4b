"""What must hold in a job, whatever faults meet it. Each check quotes its rule.

An oracle is a subclass of `scene.Oracle`: it is told what programs and coordinators see, and may
look at the scene after each step and at the end. It keeps its own account and shares no state with
the code that it checks, so that it remembers what a coordinator forgot.

To add one: write the class, let it call `scene.broke` with the rule, and put it into `ORACLES`. See
it fail once, with a bug that is planted in the shipped code.
"""

from __future__ import annotations

from typing import Final

from rallypoint.simulation.agent_oracles import AGENT_ORACLES
from rallypoint.simulation.agreement_oracles import AGREEMENT_ORACLES
from rallypoint.simulation.coordinator_oracles import (
    CoordinatorsKeepRules,
    CoordinatorsLeakNothing,
    DeadAreLost,
    DeathIsTrue,
    NothingHangs,
    ReportsAreTold,
)
from rallypoint.simulation.guilt import GUILT_ORACLES
from rallypoint.simulation.hanging import HANG_ORACLES
from rallypoint.simulation.leak_oracles import LEAK_ORACLES
from rallypoint.simulation.ledger_oracles import (
    FailoversAreCheap,
    LedgerIsSpared,
    LedgerKeepsRules,
    LedgerStaysSmall,
    LogsKeepRules,
    MistakesAreRecorded,
    OldIsRemoved,
)
from rallypoint.simulation.node_oracles import (
    EndsAgree,
    GoodbyesAreWritten,
    LeftIsNotLost,
    NodesNeverGoBack,
    OrphansStop,
    ProbesAreAnswered,
    RanksAreWhole,
    SettingsAgree,
    SuccessIsTrue,
    SupersededStop,
    TablesAgree,
    WorkersGoOn,
)
from rallypoint.simulation.operator_oracles import OPERATOR_ORACLES
from rallypoint.simulation.ownership_oracles import OWNERSHIP_ORACLES
from rallypoint.simulation.progress_oracles import (
    HopelessRunsEnd,
    RoundsForm,
    SilenceIsNoticed,
    SilentAreSuspect,
)
from rallypoint.simulation.round_oracles import ROUND_ORACLES
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.store_oracles import (
    AcknowledgedIsLogged,
    BarriersMeet,
    CallsEnd,
    StoreIsOne,
    WaitsEnd,
)
from rallypoint.simulation.witness_oracles import WITNESS_ORACLES


class TokensGrow(Oracle):
    """R13: (term, number) is the fencing token that workers are given."""

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        if here.tokens and token <= here.tokens[-1]:
            self.scene.broke("R13", f"{here.name} has {token} after {here.tokens[-1]}")


class RoundsAgree(Oracle):
    """R2: all members of a round agree on its members, ranks, sizes and bootstrap address."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._digests: dict[tuple[str, int], tuple[str, str]] = {}

    def round_given(self, here: StartedNode, token: Token, digest: str) -> None:
        """See Oracle."""
        known, by = self._digests.setdefault((here.run_id, token[1]), (digest, here.name))
        if known != digest:
            self.scene.broke("R2", f"round {token[1]} differs at {here.name} and {by}")


class NothingUnread(Oracle):
    """Any exception of a task that nobody reads fails."""

    def at_end(self) -> None:
        """See Oracle."""
        for trouble in self.scene.world.unread():
            self.scene.broke("unread", trouble)


ORACLES: Final[tuple[type[Oracle], ...]] = (
    TokensGrow,
    RoundsAgree,
    StoreIsOne,
    WaitsEnd,
    BarriersMeet,
    AcknowledgedIsLogged,
    CallsEnd,
    NothingUnread,
    CoordinatorsKeepRules,
    DeathIsTrue,
    DeadAreLost,
    NothingHangs,
    ReportsAreTold,
    RoundsForm,
    HopelessRunsEnd,
    SilentAreSuspect,
    CoordinatorsLeakNothing,
    LedgerKeepsRules,
    LogsKeepRules,
    LedgerIsSpared,
    LedgerStaysSmall,
    OldIsRemoved,
    FailoversAreCheap,
    MistakesAreRecorded,
    NodesNeverGoBack,
    OrphansStop,
    WorkersGoOn,
    RanksAreWhole,
    TablesAgree,
    EndsAgree,
    SuccessIsTrue,
    LeftIsNotLost,
    GoodbyesAreWritten,
    SettingsAgree,
    ProbesAreAnswered,
    SupersededStop,
    SilenceIsNoticed,
    *OWNERSHIP_ORACLES,
    *HANG_ORACLES,
    *ROUND_ORACLES,
    *LEAK_ORACLES,
    *AGENT_ORACLES,
    *OPERATOR_ORACLES,
    *GUILT_ORACLES,
    *WITNESS_ORACLES,
    *AGREEMENT_ORACLES,
)
