"""Launchers: tensors in, tensors out. No autograd, no choice between implementations, no argument checks."""
