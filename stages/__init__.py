"""The pipeline's stages, one file each, named after the stage in dvc.yaml."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = ("kdm_core", "pipeline", "stages")
# Taken before a program reads the rest of its code, which takes it seconds.
CHANGED = {file: file.stat().st_mtime_ns
           for folder in CODE for file in (ROOT / folder).rglob("*.py")
           if file.is_file()}
"""When each file of the code was last changed."""
