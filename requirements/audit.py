"""Look the pinned dependencies up in a database of known vulnerabilities (`make audit`).

Where the database cannot be asked, the age of the lock files is reported instead: what has been
found since then is not known here. Only a vulnerability that was found makes this fail.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
OSV = "https://api.osv.dev/v1/query"


class Unanswered(Exception):
    """The database did not answer; the message says how."""


class Vulnerability(NamedTuple):
    """A known one of a package that a lock file pins."""

    package: str
    version: str
    identity: str
    fixed_in: str


def audit(lock: Path, url: str) -> list[Vulnerability]:
    """What the database at `url`, which speaks OSV's protocol, knows of the pinned packages.

    Raises:
        Unanswered: it could not be asked.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--requirement", lock, "--disable-pip",
             "--require-hashes", "--vulnerability-service", "osv", "--osv-url", url,
             "--format", "json", "--output", answer, "--progress-spinner", "off"],
            text=True, capture_output=True)
        if not answer.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Unanswered(lines[-1][:300])
        packages = json.loads(answer.read_text())["dependencies"]
    return [Vulnerability(package["name"], package["version"], found["id"],
                          ", ".join(found["fix_versions"]) or "no version yet")
            for package in packages for found in package.get("vulns", [])]


def age(lock: Path) -> str:
    """When a lock file was changed last, as its repository says."""
    done = subprocess.run(["git", "log", "-1", "--format=%cI", "--", lock.name],
                          cwd=lock.parent, text=True, capture_output=True)
    if done.returncode or not done.stdout.strip():
        return "of unknown age (it is in no commit)"
    changed = datetime.fromisoformat(done.stdout.strip())
    return f"of {changed:%Y-%m-%d}, {(datetime.now(UTC) - changed).days} days old"


def main() -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("locks", nargs="*", type=Path, default=sorted(HERE.glob("*.lock")),
                        help="lock files (all)")
    parser.add_argument("--osv-url", default=OSV, help="the database (%(default)s)")
    arguments = parser.parse_args()
    found: list[Vulnerability] = []
    problem = ""
    for lock in arguments.locks:
        try:
            if not problem:
                found += audit(lock, arguments.osv_url)
        except Unanswered as error:
            problem = str(error)
            print(f"{arguments.osv_url} did not answer: {problem}")
        print(f"{lock.name}: {'not ' if problem else ''}looked up, {age(lock)}")
    for package, version, identity, fixed in found:
        print(f"{package} {version}: {identity}, fixed in {fixed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
