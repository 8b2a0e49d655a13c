"""The command `kdm`: a file a group of commands."""
