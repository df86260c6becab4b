"""The protocol, pure: everything that decides.

No file in this package imports I/O, a clock, a thread, logging or chance; `tests/test_layers.py`
checks that. Time and the outside world come in as events and go out as effects. So the same code
runs in a coordinator, and in a test that jumps over hours.

Read in this order: `values`, `events`, `effects`, `transitions`, `membership`; then the parts of a
run that interest you (`formation`, `gathering`, `suspicion`, `causes`, `marking`), `election` and
`store`. The rules are checked by `checkers/invariants.py`.
"""
