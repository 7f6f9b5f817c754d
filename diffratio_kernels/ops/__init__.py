"""A folder per operator: op.py (schema, checks, fake, autograd) and a module per backend, backward beside
forward."""
