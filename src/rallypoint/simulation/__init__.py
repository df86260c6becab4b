"""A deterministic world in which the shipped code runs: virtual time, and all faults from one seed.

Only engines and kernels are simulated: event loops, clocks, networks, disks, etcd. The coordinator,
the node and the ledgers are the shipped ones. Nothing here is used by a run that is real.
"""
