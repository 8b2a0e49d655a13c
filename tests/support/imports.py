"""Which of the project's files a module imports, directly or not."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("kdm_core", "stages", "pipeline")
# The schema of all stages' parameters. A stage depends on the values it reads, which DVC knows
# as params, and on the schema's own file; not on every module that another stage's section needs.
LEAVES = {Path("pipeline/params/run.py")}
# What users import from the package itself, when they ask for it; stages import from the modules.
PUBLIC = Path("kdm_core/__init__.py")


def module_file(name: str) -> Path | None:
    """The file of a dotted module name, relative to the root; None if it is not the project's."""
    base = Path(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if (ROOT / file).is_file():
            return file
    return None


def direct_imports(file: Path) -> set[Path]:
    """All files a file imports anywhere, with the packages that are initialised on the way."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] in PACKAGES:
            prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
            files |= {found for found in map(module_file, prefixes) if found}
    return files


def closure(file: Path) -> set[Path]:
    """A file and everything of the project it imports; empty package markers left out."""
    seen: set[Path] = set()
    todo = {file}
    while todo:
        current = todo.pop()
        if current == PUBLIC:
            continue
        seen.add(current)
        if current not in LEAVES:
            todo |= direct_imports(current) - seen
    markers = {f for f in seen if f.name == "__init__.py" and not has_code(f)}
    return seen - markers


def has_code(file: Path) -> bool:
    """Whether a package file holds more than a docstring and a version."""
    body = ast.parse((ROOT / file).read_text()).body
    return any(not isinstance(node, ast.Expr | ast.Assign) for node in body)
