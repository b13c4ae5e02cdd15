"""Optional parts of a backend that let the harness look inside: layers of the encoder, margins of tokens."""
