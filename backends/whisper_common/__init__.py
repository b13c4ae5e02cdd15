"""What Whisper engines share: settings, suppressed tokens, greedy transcription around their arithmetic."""
