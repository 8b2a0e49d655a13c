"""The stage as a program."""

from pipeline.runtime.runner import run
from stages.filter_pairs.stage import main

run("filter_pairs", main, "make pairs.shard smaller")
