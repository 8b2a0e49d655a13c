"""The pairs of a project, besides what only the stage does that samples them."""
