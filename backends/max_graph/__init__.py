"""Whisper as MAX graphs: modules named as openai-whisper's, log-mel, the greedy loop, compiled artefacts."""
