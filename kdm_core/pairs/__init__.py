"""Noise–sample pairs: the store, sampling into it, reading from it."""
