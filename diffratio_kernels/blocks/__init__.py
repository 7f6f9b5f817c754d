"""The routed block: one for every family, with one bin or two, and modules of its own."""
