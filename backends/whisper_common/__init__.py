"""What Whisper engines share: settings, suppressed tokens, greedy transcription around an engine's arithmetic."""
