"""Records beside outputs and weights: how they are written and read again."""
