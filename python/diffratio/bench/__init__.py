"""Latency and memory beside everything a user would run instead, from single operators to a sampling loop."""
