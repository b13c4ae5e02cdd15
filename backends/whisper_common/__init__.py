"""What Whisper engines share: constants, checks of settings, and transcription as openai-whisper does it."""
