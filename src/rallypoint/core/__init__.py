"""The protocol, pure: everything that decides, and nothing that waits, sends, sleeps or draws lots.

No file in this package imports I/O, a clock, a thread or chance (`tests/test_layers.py` keeps it
so): time and the outside world come in as events, and go out as effects. The same code therefore
runs in a coordinator, in a test that jumps over hours, and in a simulator.

Read in this order: `values`, `events`, `effects`, `membership` (with `roster`, `sealing`,
`suspicion` and `causes`; `rivals`, `departures` and `deferral` only remember), then `store`,
`ranks`, `reasons`, and `invariants` with its `journal`.
"""
