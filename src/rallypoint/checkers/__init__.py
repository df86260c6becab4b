"""Checks of the rules: of states of the core, and of what coordinators write and answer.

Tests and the simulator use them. Nothing that runs a job does.
"""
