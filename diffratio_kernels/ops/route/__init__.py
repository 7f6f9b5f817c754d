"""Score every token, keep the best of each sample."""
