"""Raw samples into figures and a verdict: which samples count, what they say, may the row be ranked."""
