"""Ahead-of-time compilation of every shipped kernel, without a GPU: what `diffratio kernels` reports."""
