"""The agent: keeps one machine's workers in line with the round, and passes their store calls on.

With an agent, a program needs no code to be elastic: it gets torchrun's environment, is started
again when the members change, and never outlives its agent. Everything here is about processes,
pipes and ports of this machine. The layers below decide what a round is and who is in it.
"""
