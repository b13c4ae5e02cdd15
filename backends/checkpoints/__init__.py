"""From a model's name to a verified checkpoint file on this machine: catalogue, sources, digests, cache."""
