"""The pipeline's stages, a file or a folder each, named after the stage in dvc.yaml."""

# Looks at the code before a program reads the rest of it.
from pipeline.runtime.dates import CHANGED  # noqa: F401
from pipeline.runtime.stopping import show_no_traceback

show_no_traceback()
