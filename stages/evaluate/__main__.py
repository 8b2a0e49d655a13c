"""The stage as a program."""

import sys

from pipeline.runtime.runner import run
from stages.evaluate.stage import main

run(f"evaluate@{sys.argv[1]}", lambda stage: main(stage, sys.argv[1]))
