"""A ledger in etcd: its client over HTTP, its answers, and what a transaction says was done."""

from rallypoint.ledger.etcd.ledger import EtcdLedger

__all__ = ["EtcdLedger"]
