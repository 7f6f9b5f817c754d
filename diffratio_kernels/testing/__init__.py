"""What tests of a backend of one's own want: cases of every operator, and the error budget.

Nothing here is imported by the rest of the package.
"""
