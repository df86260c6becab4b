"""Ledgers: they keep all data that must outlive a coordinator. The contract, and the engines."""
