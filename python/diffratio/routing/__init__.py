"""Routing a model: apply, forward, learned ratios, adapters, contexts."""
