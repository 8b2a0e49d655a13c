"""Figures, one kind a module; every function takes arrays and returns a matplotlib Figure."""
