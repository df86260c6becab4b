"""A round's key-value store: what can be asked of it, what it keeps, and who waits for what."""
