"""`rallypoint doctor`: what would keep this machine's nodes from meeting, checked one by one.

Each kind of check is a file with one function. `examination.py` lists them, and gives each a thread
and a deadline, so that one that hangs stops no other. `all_pairs.py` lets the nodes of a job try
the connections among themselves.

Nothing here may change anything that stays: a check reads, connects, and removes what it has
written. It must not print: cli/doctor.py does.
"""
