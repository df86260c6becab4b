"""A ledger in a folder, which several machines may share. `FileLedger` is the engine.

An index (`index`, `entries`) has the folder of each register and each log. A register is a chain of
versions (`chain`, `registers`), a log is a folder of records (`logs`). Both consist of files that
are linked to their names once (`disk`), so no locks are needed. `folder` recognises a ledger, and
`probe` checks its file system.
"""

from rallypoint.ledger.file.ledger import FileLedger

__all__ = ["FileLedger"]
