"""Projects: what any folder needs to be one. The code is the installation's."""
