"""Figures over sets of samples. A metric never borrows another's name."""
