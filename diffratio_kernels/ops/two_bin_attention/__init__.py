"""Attention of two nested sets of rows."""
