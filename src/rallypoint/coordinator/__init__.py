"""Hosts runs: carries messages to the core, and carries out what the core decides.

Nothing here decides about ranks, rounds or members; that is `core`. Read the files in this order:

1. `session`: one connection of a node; `outgoing` has what waits for a slow peer.
2. `hosted_run`: one run. Its parts are `connections`, `store_service`, `run_timers`, `run_memory`,
   `member_table`, `event_queue` and `history`.
3. `coordinator`: all runs and connections; `idle_runs` has those without nodes. None of these has
   sockets or asyncio: they take bytes, connection events and ticks, and a test drives them over a
   network in memory.
4. `memory_ownership`, or on a ledger `run_ownership`: where records are kept, and whether this
   process owns a run. The latter drives claims (`claimed_run`) as far as the lease allows
   (`lease_manager`); `owned_runs` tells the hosted runs, with `takeover` and `log_writer`.
5. The log of a round's store: `store_log` and `log_records`; at a takeover `log_reader` and
   `log_replay`; `round_log` has the names. Old data goes in `garbage_collector` and `run_removal`.
6. `server`: the port. `listener`, `hosts`, `tokens` and `strangers` decide who may connect;
   `websocket`, `frames`, `incoming` and `turns` read and share; `http_api`, `status`, `replicas`,
   `ledger_view` and their helpers answer people.

Imports go one way. A part that calls back defines a small protocol of what it needs.
"""

from rallypoint import logs

logs.tidy("rallypoint.coordinator")
