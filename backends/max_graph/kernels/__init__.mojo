"""Custom operations of the MAX graphs, for CPU; backends/max_graph/custom_ops.py builds the calls."""
