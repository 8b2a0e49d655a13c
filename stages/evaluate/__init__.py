"""evaluate: a student beside its teacher, on the same unseen noise and against real data."""
