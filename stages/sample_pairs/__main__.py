"""The stage as a program."""

from pipeline.runtime.runner import run
from stages.sample_pairs.stage import main

run("sample_pairs", main)
