"""Hosts runs: passes messages to the core, and executes what the core decides.

This package must not decide about ranks, rounds or members; `core` does. Read the files in this
order:

1. `session`: one connection of a node; `outgoing` has the messages that wait for a slow peer.
2. `hosted_run`: one run. Its parts are `connections`, `store_service`, `run_timers`, `run_memory`,
   `member_table`, `event_queue` and `history`.
3. `coordinator`: all runs and connections; `idle_runs` has runs without nodes. None of these files
   has sockets or asyncio: they take bytes, connection events and ticks, and a test drives them over
   a network in memory.
4. `memory_ownership`, or on a ledger `run_ownership`: where records are kept, and whether this
   process owns a run. `run_ownership` drives claims (`claimed_run`) as far as the lease allows
   (`lease_manager`). `owned_runs` passes the outcomes on to the hosted runs, with `takeover` and
   `log_writer`.
5. The log of a round's store: `store_log` and `log_records`; at a takeover `log_reader` and
   `log_replay`; `round_log` has the names. `garbage_collector` and `run_removal` remove old data.
6. `server`: the port. `listener`, `hosts`, `tokens` and `strangers` decide who may connect;
   `websocket`, `frames` and `incoming` read messages, and `turns` shares the event loop.
   `http_api`, `status`, `replicas` and `ledger_view` answer people.

Imports have one direction. A part that calls back defines a small protocol of what it needs.
"""

from rallypoint import logs

logs.tidy("rallypoint.coordinator")
