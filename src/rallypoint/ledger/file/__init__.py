"""A ledger in a shared folder: versions as files that are linked into place, and an index."""

from rallypoint.ledger.file.ledger import FileLedger

__all__ = ["FileLedger"]
