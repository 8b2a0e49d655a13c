"""Checks of DVC's own records of what has run."""

import json
from pathlib import Path

from pipeline.kdm.checks.finding import Finding, ok, problem
from pipeline.project.current import PipelineError
from pipeline.project.dvc_records import CUT_RUN, CUT_RWLOCK, empty_runs, look, settled

RWLOCK = Path(".dvc/tmp/rwlock")


def check_records() -> list[Finding]:
    """Whether this is a project, and DVC can read its pipeline and what it has recorded of it."""
    findings = []
    try:
        stages, runs = look(Path(), lambda repo: (len(repo.index.graph),
                                                  empty_runs(Path(repo.stage_cache.cache_dir))))
        if runs:
            findings.append(problem("DVC's cache of runs", f"{runs[0]} is empty", CUT_RUN))
    except PipelineError as error:
        findings.append(Finding("DVC's records", "problem", str(error)))
    try:
        settled(lambda: json.loads(RWLOCK.read_text(encoding="utf-8")), ValueError)
    except FileNotFoundError:
        pass
    except ValueError as error:
        findings.append(problem(str(RWLOCK), f"cannot be read ({error})", CUT_RWLOCK))
    return findings or [ok("DVC's records", f"{stages} stages")]
