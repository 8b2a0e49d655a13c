"""Where the stages find and leave things, relative to the folder of params.yaml.

The same paths stand in dvc.yaml, which says what depends on what.
"""

from pathlib import Path

DATASET = Path("data/dataset")
REFERENCE = Path("data/reference")
AUTOENCODER = Path("data/autoencoder")
# The data as an autoencoder gives them: what models learn then.
LATENTS = AUTOENCODER / "latents"
TEACHER = Path("data/teacher")
PAIRS = Path("data/pairs/pairs.zarr")
# The mask through which students read them.
KEEP = Path("data/pairs/keep.zarr")
# What the report shows of the filter.
FILTERED = Path("data/pairs/filtered")
STUDENTS = Path("data/students")
EVALUATION = Path("data/evaluation")
STUDIES = Path("data/studies")
# Work under way, one folder a stage; DVC does not know it.
WORK = Path("data/work")
# Features of sets of images, by their content: students share their teacher's.
FEATURES = WORK / "features"

REPORTS = Path("reports")
# What a stage found out that is more than runs are compared by.
DETAILS = REPORTS / "details"
CURVES = REPORTS / "curves"
TIMINGS = REPORTS / "timings"
FIGURES = REPORTS / "figures"
