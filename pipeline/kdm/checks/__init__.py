"""What can be wrong with a machine or a project before anything runs: one function a check."""
