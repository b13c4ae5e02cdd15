"""What Whisper engines share: settings, suppressed tokens, and the greedy transcription loop."""
