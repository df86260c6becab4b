"""A ledger in etcd v3. `EtcdLedger` is the engine; `client` speaks to etcd over HTTP and JSON.

`options` says where etcd is, `wire` has its answers and what its refusals mean, `failures` why a
request failed without an answer, and `txn` transactions that are sent until their outcome is known.
The rendezvous modules that use etcd use `client` and `txn` as well.
"""

from rallypoint.ledger.etcd.ledger import EtcdLedger

__all__ = ["EtcdLedger"]
