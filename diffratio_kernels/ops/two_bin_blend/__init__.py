"""Blend, finish and scatter the rows of two bins."""
