"""Turns a model's name into a verified checkpoint on this machine: catalogue, sources, digests, cache."""
