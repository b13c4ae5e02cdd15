"""Examines engines and answers: transcripts side by side, token margins, errors of encoder layers."""
