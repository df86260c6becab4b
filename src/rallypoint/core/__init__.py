"""The protocol, pure: everything that decides, and nothing that waits, sends, sleeps or draws lots.

No file in this package imports I/O, a clock, a thread or chance (`tests/test_layers.py` keeps it
so): time and the outside world come in as events, and go out as effects. The same code therefore
runs in a coordinator and in a test that jumps over hours.

Read in this order: `values`, `events`, `effects`, `membership` (with `roster`, `formation`,
`suspicion` and `causes`; `name_conflicts`, `flapping` and `suspended_events` only remember), then
`store`, `ranks` and `reasons`. The rules that they keep are checked by `testing/invariants.py`.
"""
