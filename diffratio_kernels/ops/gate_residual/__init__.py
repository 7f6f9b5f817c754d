"""The end of a branch: hidden + gate * branch."""
