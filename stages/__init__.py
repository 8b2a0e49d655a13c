"""The pipeline's stages, a file or a folder each, named after the stage in dvc.yaml."""

# Looks at the code before a program reads the rest of it.
from pipeline.runtime.dates import CHANGED  # noqa: F401
