"""Finish the kept rows and scatter them into a copy of x."""
