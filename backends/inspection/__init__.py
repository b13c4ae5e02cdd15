"""Optional parts of a backend that let the harness look inside: encoder layers and token margins."""
