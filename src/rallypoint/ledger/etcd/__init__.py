"""A ledger in etcd v3. `EtcdLedger` is the engine; `client` is a client of etcd over HTTP and JSON.

`options` has etcd's addresses and limits, `wire` its answers and refusals, `failures` the reasons
of a request without an answer, and `txn` transactions that are sent until their outcome is known.
The rendezvous modules for etcd use `client` and `txn` as well.
"""

from rallypoint.ledger.etcd.ledger import EtcdLedger

__all__ = ["EtcdLedger"]
