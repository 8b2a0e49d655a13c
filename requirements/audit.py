"""Look the pinned dependencies up in a database of known vulnerabilities (`make audit`).

Where the database cannot be asked, the age of the lock files is reported instead: what has been
found since then is not known here. A vulnerability makes this fail, and so does a lock file that
cannot be looked up in a database that answers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx

HERE = Path(__file__).parent
OSV = "https://api.osv.dev/v1/query"
TIMEOUT_S = 30


class AuditError(Exception):
    """A lock file could not be looked up; the message says why."""


class Vulnerability(NamedTuple):
    """A known one of a package that a lock file pins."""

    package: str
    version: str
    identity: str
    fixed_in: str


def silence(url: str) -> str:
    """Why the database does not answer; empty if it does."""
    question = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "0"}
    try:
        httpx.post(url, json=question, timeout=TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def audit(lock: Path, url: str) -> list[Vulnerability]:
    """What the database at `url`, which speaks OSV's protocol, knows of the pinned packages.

    Raises:
        AuditError: they could not be looked up.
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
            raise AuditError(lines[-1][:300])
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
    if missing := [str(lock) for lock in arguments.locks if not lock.is_file()]:
        sys.exit(f"missing: {', '.join(missing)}")
    found: list[Vulnerability] = []
    failed = False
    if unanswered := silence(arguments.osv_url):
        print(f"{arguments.osv_url} did not answer: {unanswered}")
    for lock in arguments.locks:
        try:
            if not unanswered:
                found += audit(lock, arguments.osv_url)
            print(f"{lock.name}: {'not ' if unanswered else ''}looked up, {age(lock)}")
        except AuditError as error:
            failed = True
            print(f"{lock.name}: could not be looked up: {error}")
    for package, version, identity, fixed in found:
        print(f"{package} {version}: {identity}, fixed in {fixed}")
    return 1 if found or failed else 0


if __name__ == "__main__":
    sys.exit(main())
