"""The messages between nodes and coordinator, and between workers and agent (R12)."""
