"""Hosts runs: carries messages to the core and carries out what it decides.

Nothing here decides about ranks, rounds or members; that is `core`. Nor does anything here but
`server` and `committer` know of asyncio: `coordinator`, `hosted_run` and `session` take bytes,
connection events and ticks, and can be driven by a simulated network as well.
"""

from rallypoint import logs

logs.tidy("rallypoint.coordinator")
