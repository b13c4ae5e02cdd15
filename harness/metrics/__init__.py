"""Word errors, normalisers, hallucinations, and the statistics of samples: how a figure is computed."""
