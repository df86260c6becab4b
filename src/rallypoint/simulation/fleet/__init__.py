"""A fleet of thousands of nodes over days, in virtual time: how would a job fare?

Each node is the shipped `NodeMachine`, each coordinator the shipped `Membership`. Around them are a
failure model, the job's own times, and what messages cost. Heartbeats and bytes are not simulated.
"""
