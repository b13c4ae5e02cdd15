"""Two runs: may they be compared, what changed, is it worse, and the report of it."""
