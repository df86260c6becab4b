"""The agent: keeps one machine's workers matching the round, and carries their store calls.

The layer exists because a program should not have to know that it is elastic: it gets the
environment that torchrun gives, is started again when the members change, and never outlives its
agent. Everything here is about processes, pipes and ports of this machine; what a round is, and
who is in it, is decided below and only followed here.
"""
