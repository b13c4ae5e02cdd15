"""Whisper in tuned PyTorch: encoder, decoder, token selection. `torch-fast` and `max-hybrid` use it."""
