"""`rallypoint bench`: how long nodes take to meet, to notice a loss and to regroup, and their cost.

    socket_baseline.py   what the machine itself can do: bare sockets, no protocol
    virtual.py   one virtual node: the shipped machine and messages, over a lean WebSocket
    fleet.py     many virtual nodes in one process, driven by commands; what these ask of the
                 coordinator (fleet_calls.py), and how soon it answers them (fleet_watch.py)
    driver.py    starts coordinators and fleets, and asks them
    agents.py    real `rallypoint run` agents, each with a worker
    real_nodes.py, node_processes.py   real nodes, in processes that can be killed alone
    joining.py, blocking_caller.py   programs that use the blocking API
    proxy.py, etcd.py   a cable that can be cut; a ledger that can be stopped, and counts
    coordinator_api.py   what a coordinator shows over HTTP
    scenarios    one question each: meet.py, multi_host.py, join.py, regroup.py, idle.py,
                 store.py, runs.py, neighbour.py, strangers.py, model.py; losses: recover.py,
                 kill.py, cut.py, preempted.py, frozen_node.py, frozen_coordinator.py,
                 failover.py, host_lost.py, rack.py; the ledger: ledger_away.py,
                 ledger_reads.py, ledger_writes.py
    figure.py, report.py   figures with their targets; tables, JSON and plots of them

No other part of Rallypoint may import this package.
"""
