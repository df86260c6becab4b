"""A ledger in a folder, which several machines may share. `FileLedger` is the engine.

An index (`index`, `entries`) says which folder each register and log has. A register is a chain of
versions (`chain`, `registers`), a log a folder of records (`logs`). Both are files that are linked
to their names once (`disk`), so nothing is ever locked. `folder` and `probe` recognise a ledger and
check what its folder can do.
"""

from rallypoint.ledger.file.ledger import FileLedger

__all__ = ["FileLedger"]
