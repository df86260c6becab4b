"""The agent: it runs one machine's workers for the present round, and passes on their store calls.

With an agent, a program needs no code to be elastic: it gets torchrun's environment, is restarted
when the members change, and never outlives its agent. This package handles processes, pipes and
ports of this machine. It must not decide what a round is or who is in it; the layers below do.
"""
