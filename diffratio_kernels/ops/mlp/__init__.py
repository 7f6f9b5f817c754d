"""Two products around GELU."""
