"""Compares two runs: whether they are comparable, what changed, whether it is worse, and a report of it."""
