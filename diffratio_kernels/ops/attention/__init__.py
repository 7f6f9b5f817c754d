"""Packed (varlen) attention."""
