"""Turns raw samples into figures and a verdict: which samples count, and whether a row may be ranked."""
