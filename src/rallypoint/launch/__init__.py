"""The agent: keeps one machine's workers matching the round, and carries their store calls.

With an agent, a program needs no code to be elastic: it gets torchrun's environment, is started
again when the members change, and never outlives its agent. Everything here is about processes,
pipes and ports of this machine. The layers below decide what a round is and who is in it.
"""
