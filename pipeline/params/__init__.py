"""The only reader of params.yaml: a strict schema, a file a section."""
