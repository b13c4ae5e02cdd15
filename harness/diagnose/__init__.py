"""Looks into engines and answers: transcripts side by side, margins of tokens, errors of encoder layers."""
