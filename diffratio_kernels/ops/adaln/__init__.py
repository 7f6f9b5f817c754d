"""Kept rows of x and their adaptive layer norm."""
