"""The numerical code of a stage: the modules that it imports, by what they compute.

Modules are read and not imported, so this takes no torch. What counts of a module is its syntax
tree without docstrings and messages; comments are no part of it.

A package that offers components of several *kinds* imports all of them. Of these only the kinds
that the parameters choose are code of the stage: editing one network reruns nothing where another
one is used.
"""

import ast
import hashlib
from collections.abc import Container, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kdm_core.errors import DataError

INSTALLED = Path(__file__).parents[3]
"""Where the packages lie: the repository, or the site-packages of an installation."""
PACKAGES = ("kdm_core", "pipeline", "stages")
# What is about running, telling and sharing, and decides no result. A module of a package that
# stands here is not followed either.
PLUMBING = (
    "pipeline.flow", "pipeline.kdm", "pipeline.params", "pipeline.project",
    "pipeline.pairs.kept", "pipeline.reporting.publishing",
    *(f"pipeline.runtime.{name}" for name in (
        "curves", "dates", "guard", "log", "paths", "plan", "processes", "progress", "runner",
        "status", "stopping")),
    *(f"pipeline.workers.{name}" for name in (
        "cluster", "engine", "fitness", "member", "processes", "tasks")),
    "kdm_core.errors", "kdm_core.pairs.claims", "kdm_core.pairs.location",
    "kdm_core.sharing",
    "kdm_core.training.launcher", "kdm_core.training.meeting", "kdm_core.training.waiting",
    "kdm_core.vision",
)
# Named wherever losses are, and code of a student only where they have a weight.
SWITCHED = ("kdm_core.losses.adversary", "kdm_core.losses.drifting")
# What users import from the package itself, when they ask for it; stages import from the modules.
PUBLIC = "kdm_core"
TELLING = {"adapted", "note", "say", "warn"}
"""Functions and methods that tell a person something."""
KIND_FIELDS = {"kind", "source"}


class Module(NamedTuple):
    """A module of the project, as its file says.

    Attributes:
        name: dotted.
        digest: of what it computes.
        imports: what it imports: the module, and the name that is taken from it, empty for all.
        is_kind: whether it describes a component of one kind.
        is_package: whether it is the `__init__` of a package.
    """

    name: str
    digest: str
    imports: list[tuple[str, str]]
    is_kind: bool
    is_package: bool


def code_of(roots: Iterable[str], chosen: Container[str]) -> dict[str, str]:
    """What the code of some modules computes.

    Args:
        roots: the modules to begin with, dotted.
        chosen: modules of the kinds that are chosen.

    Returns:
        By the dotted names of all modules that are reached, a digest of each.
    """
    seen: dict[str, str] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in seen and name != PUBLIC and not is_plumbing(name):
            module = read(name)
            seen[name] = module.digest
            todo += needed(module, chosen)
    return {name: seen[name] for name in sorted(seen) if seen[name]}


def needed(module: Module, chosen: Container[str]) -> Iterator[str]:
    """The modules that a module needs, given the kinds that are chosen."""
    for source, name in module.imports:
        if file_of(source) is None:
            continue
        target = origin(source, name) if name else source
        if target != source:
            yield source
        yield from packages_around(target)
        if target in chosen or not is_offered(module, target):
            yield target


def is_offered(module: Module, target: str) -> bool:
    """Whether a module imports another one for the case that it is chosen."""
    offers = module.is_package and target.startswith(f"{module.name}.")
    return target in SWITCHED or (offers and read(target).is_kind)


def packages_around(name: str) -> Iterator[str]:
    """The packages that a module lies in, which Python imports first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def origin(source: str, name: str) -> str:
    """The module that defines what is imported as `name` from the module `source`."""
    if file_of(f"{source}.{name}") is not None:
        return f"{source}.{name}"
    found = read(source)
    for inner, taken in found.imports:
        if found.is_package and taken == name and inner != source:
            return origin(inner, name)
    return source


def is_plumbing(name: str) -> bool:
    return any(part in PLUMBING for part in (name, *packages_around(name)))


def file_of(name: str) -> Path | None:
    """The file of a dotted module name; None if it is none of the project's."""
    return module_in(INSTALLED, name) if name.split(".")[0] in PACKAGES else None


def module_in(folder: Path, name: str) -> Path | None:
    """The file of a dotted module name below a folder; None if there is none."""
    base = folder.joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py"))
                 if file.is_file()), None)


def modules_below(package: str) -> list[str]:
    """The modules of a package, dotted."""
    folder = INSTALLED.joinpath(*package.split("."))
    return [".".join(file.relative_to(INSTALLED).with_suffix("").parts)
            for file in sorted(folder.rglob("*.py")) if file.name != "__init__.py"]


@cache
def read(name: str) -> Module:
    """Read a module of the project; once, since code is taken as it was when a program began."""
    file = file_of(name)
    assert file is not None, name
    return parse(name, file)


def parse(name: str, file: Path) -> Module:
    """Read a module.

    Raises:
        DataError: it is no Python.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise DataError(f"{file}, line {error.lineno}, is no valid Python: {error.msg}") from error
    imports, kind = list(imports_of(tree)), is_kind(tree)
    text = ast.unparse(Computing().visit(tree))
    return Module(name, digest(text.encode()) if text else "", imports, kind,
                  file.name == "__init__.py")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What is imported anywhere in a module, but for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        else:
            yield from imports_of(node)


def is_kind(tree: ast.Module) -> bool:
    """Whether a class of a module says of which kind it is: `kind: Literal["mlp"]`."""
    return any(isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
               and line.target.id in KIND_FIELDS
               and ast.unparse(line.annotation).startswith("Literal[")
               for node in tree.body if isinstance(node, ast.ClassDef) for line in node.body)


class Computing(ast.NodeTransformer):
    """Takes from a module what decides no result: docstrings, messages, imports of plumbing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value
        if isinstance(call, ast.Constant):
            return None
        if isinstance(call, ast.Call):
            named = call.func.attr if isinstance(call.func, ast.Attribute) else (
                call.func.id if isinstance(call.func, ast.Name) else "")
            if named in TELLING:
                return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if is_plumbing(node.module or "") else node


def own_code(names: Iterable[str], folder: Path) -> dict[str, tuple[str, str]]:
    """Modules of the user's, and those beside them that they import.

    Args:
        names: dotted; nothing is imported.
        folder: where they lie; what lies elsewhere is a library, and not followed.

    Returns:
        By name, the file relative to the folder, and a digest of what it computes.

    Raises:
        DataError: one is no Python.
    """
    found: dict[str, tuple[str, str]] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        file = module_in(folder, name)
        if name in found or file is None:
            continue
        module = parse(name, file)
        found[name] = (str(file.relative_to(folder)), module.digest)
        todo += packages_around(name)
        for source, taken in module.imports:
            todo += [source, f"{source}.{taken}"] if taken else [source]
    return dict(sorted(found.items()))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
