"""Collect what a bare GPU machine lacks to run the GPU's tests and benchmark (`make gpu-bundle`).

    python requirements/gpu_bundle.py [--python 3.12] [--out gpu-bundle.tar.gz]

The machine has Python, torch with CUDA and numpy, and perhaps no network. The bundle has the rest:
the wheels of what the library and its tests import, as the lock file pins and hashes them, the
code, and `run.sh`. Its size is checked, since such machines take files up to a limit.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCK = HERE / "base.lock"
NEEDED = ("zarr", "numcodecs", "pydantic", "safetensors", "pytest")
# Only where the machine has none: torchvision has the shape of FID's network.
EXTRA = ("torchvision",)
THERE = frozenset({"torch", "numpy"})
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
CODE = ("kdm_core", "benchmarks/__init__.py", "benchmarks/gpu", "tests/__init__.py", "tests/gpu",
        "pyproject.toml", "LICENSE")
LIMIT_MB = 60


class BundleError(Exception):
    """There is no bundle; the message says why and what to do."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """The entries of a lock file, hashes included, by the name of their package."""
    entries = re.split(r"\n(?=\S)", text.strip())
    return {canonical(re.match(r"[\w.-]+", entry)[0]): entry  # type: ignore[index]
            for entry in entries}


def closure(names: tuple[str, ...], python: str) -> set[str]:
    """Packages with all that they need on Linux and a version of Python, without what is there.

    What they need is read from the installed ones, which are those of the lock file.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0",
                   "sys_platform": "linux", "platform_system": "Linux", "extra": ""}
    found: set[str] = set()
    waiting = [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found | THERE:
            continue
        found.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(canonical(requirement.name))
    return found


def download(names: set[str], python: str, folder: Path) -> None:
    """The wheels of pinned packages for a version of Python, hashes compared.

    Raises:
        BundleError: one is not pinned, or has no such wheel.
    """
    entries = locked(LOCK.read_text())
    if missing := sorted(names - set(entries)):
        raise BundleError(f"{LOCK} does not pin {', '.join(missing)}: run `make lock`")
    folder.mkdir()
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(entries[name] for name in sorted(names)) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check",
         "--only-binary=:all:", "--no-deps", "--require-hashes", "--python-version", python,
         *(f"--platform={platform}" for platform in PLATFORMS),
         "--dest", folder, "--requirement", wanted])
    wanted.unlink()
    if done.returncode:
        raise BundleError(f"pip found no wheels for Python {python} (see above); try --python with "
                          "another version, or look whether the index can be reached")


def code_files() -> list[str]:
    """The files of the code, relative to the root; those that git ignores are not among them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *CODE],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def build(python: str, out: Path, limit_mb: float = LIMIT_MB) -> None:
    """Make the bundle.

    Raises:
        BundleError: wheels are not to be had, or it would be larger than the limit.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "gpu-bundle"
        folder.mkdir()
        needed = closure(NEEDED, python)
        download(needed, python, folder / "wheels")
        download(closure(EXTRA, python) - needed, python, folder / "extra")
        for file in code_files():
            target = folder / "code" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)
        (folder / "python").write_text(python + "\n")
        shutil.copy(ROOT / "benchmarks/gpu/run.sh", folder / "run.sh")
        unfinished = Path(name) / "bundle.tar.gz"
        with tarfile.open(unfinished, "w:gz") as archive:
            archive.add(folder, folder.name)
        check_size(unfinished, folder, limit_mb)
        shutil.move(unfinished, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB for Python {python}; on the machine: "
          f"tar xzf {out.name} && ./{folder.name}/run.sh")


def check_size(archive: Path, folder: Path, limit_mb: float) -> None:
    """
    Raises:
        BundleError: an archive of a folder is larger than the limit.
    """
    size = archive.stat().st_size / 1e6
    if size <= limit_mb:
        return
    files = sorted(((file.stat().st_size, str(file.relative_to(folder)))
                    for file in folder.rglob("*") if file.is_file()), reverse=True)
    largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in files[:5])
    raise BundleError(f"the bundle has {size:.1f} MB, and {limit_mb:g} MB are the limit; the "
                      f"largest parts are {largest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.12", help="the version of the machine's Python")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-bundle.tar.gz")
    given = parser.parse_args()
    try:
        build(given.python, given.out)
    except BundleError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
