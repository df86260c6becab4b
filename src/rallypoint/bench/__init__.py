"""`rallypoint bench`: how long nodes take to meet, to notice, to regroup, and what they cost.

    floor.py     what the machine itself can do: bare sockets, no protocol
    virtual.py   one virtual node: the shipped machine and messages, over a lean WebSocket
    fleet.py     many virtual nodes in one process, driven by commands
    driver.py    starts coordinators and fleets, and asks them
    scenarios    meet.py, regroup.py, idle.py, store.py, failover.py, recover.py: one question each
    report.py    tables, JSON and plots of what was measured

Nothing here is loaded by any other part of Rallypoint.
"""
