"""`tests`: those marked `gpu`, in a process of their own, and what became of them."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.bench import Row

ROOT = Path(__file__).parents[2]
COMPILED = "tests/gpu/test_compiled.py"
GROUPS: dict[str, list[str]] = {
    "all but compiled": ["tests/gpu", f"--ignore={COMPILED}"], "compiled": [COMPILED]}
"""What is run together; what takes longest comes last, so that its end costs nothing else."""


def run(group: str, seconds: float) -> list[Row]:
    """A row for all that passed, and one for each test that failed or was skipped, with the reason.
    """
    about = f"tests: {group}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", *GROUPS[group],
                   f"--junitxml={report}", "-o", "addopts=-q --strict-markers --tb=short",
                   "-p", "no:cacheprovider"]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return [{"name": about, "why_not": f"it was not done after {seconds:.0f} s"}]
        if not report.exists():
            return [{"name": about, "why_not": f"it ended with code {code} and no report"}]
        return read(report, about)


def read(report: Path, about: str) -> list[Row]:
    """The rows of pytest's own report."""
    rows, passed = [], 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
        failures = [*case.findall("failure"), *case.findall("error")]
        if failures:
            rows.append({"name": name, "outcome": "failed",
                         "why_not": (failures[0].get("message") or "")[:300]})
        elif (skipped := case.find("skipped")) is not None:
            rows.append({"name": name, "outcome": "skipped", "why": skipped.get("message")})
        else:
            passed += 1
    return [{"name": about, "outcome": f"{passed} passed"}, *rows]
