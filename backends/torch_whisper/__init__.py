"""Whisper in tuned PyTorch: encoder, decoder and token selection. `torch-fast` and `max-hybrid` use it."""
