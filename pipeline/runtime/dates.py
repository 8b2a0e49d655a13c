"""How the code was when this program began."""

from pipeline.runtime.plan.code import INSTALLED, PACKAGES

# Taken before a program reads the rest of its code, which takes it seconds.
CHANGED = {file: file.stat().st_mtime_ns
           for package in PACKAGES for file in (INSTALLED / package).rglob("*.py")
           if file.is_file()}
"""When each file of the code was last changed."""
