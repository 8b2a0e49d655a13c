"""Finds calls that could run what is in a file or a text, by the syntax of the code."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

# Names that are refused wherever they stand: also one that is only passed on may be called.
REFUSED = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.load", "_pickle.loads",
    "_pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "dill.loads",
    "cloudpickle.load", "cloudpickle.loads", "joblib.load", "pandas.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load",
    "yaml.unsafe_load_all", "ruamel.yaml.load", "ruamel.yaml.load_all",
    "builtins.eval", "builtins.exec", "builtins.__import__", "runpy.run_path", "runpy.run_module",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "shutil.unpack_archive", "torch.hub.load",
}
LOADS = {"torch.load", "torch.serialization.load"}
BUILTINS = {"eval", "exec", "__import__"}
ARCHIVES = {"tarfile", "zipfile"}
EXTRACTS = {"extract", "extractall"}


class Finding(NamedTuple):
    """What stands where."""

    line: int
    name: str


class Finder(ast.NodeVisitor):
    """Walks one module; `found` is what it should not have."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.names: dict[str, str] = {}
        self.unpacks = False

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.names[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0])
            self.unpacks |= alias.name in ARCHIVES

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            # What comes with a star could be called by names that nothing here knows.
            self.refuse(node, "import *", alias.name == "*")
            full = f"{node.module}.{alias.name}"
            self.names[alias.asname or alias.name] = full
            self.unpacks |= node.module in ARCHIVES
            self.refuse(node, full, full in REFUSED)

    def visit_Name(self, node: ast.Name) -> None:
        self.refuse(node, node.id, node.id in BUILTINS)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.dotted(node)
        self.refuse(node, name, name in REFUSED)
        self.refuse(node, f"archive.{node.attr}", self.unpacks and node.attr in EXTRACTS)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self.dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        self.refuse(node, "torch.load without weights_only=True",
                    name in LOADS and not is_constant(given.get("weights_only"), True))
        self.refuse(node, "numpy.load with allow_pickle",
                    name.startswith("numpy.") and name.endswith((".load", ".read_array"))
                    and not is_constant(given.get("allow_pickle"), False, absent=True))
        self.refuse(node, "a shell", not is_constant(given.get("shell"), False, absent=True))
        self.refuse(node, "trust_remote_code",
                    not is_constant(given.get("trust_remote_code"), False, absent=True))
        # "rt", the default, makes no objects of tags either, but holds more than plain data.
        self.refuse(node, "YAML that is not safe", name.endswith(".YAML") and not (
            is_constant(given.get("typ"), "safe") or is_constant(given.get("typ"), "rt", True)))
        self.generic_visit(node)

    def refuse(self, node: ast.AST, name: str, unsafe: bool) -> None:
        if unsafe:
            self.found.append(Finding(getattr(node, "lineno", 0), name))

    def dotted(self, node: ast.AST) -> str:
        """The full name of what was imported and is referred to; empty for anything else."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, "")
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return ""


def is_constant(node: ast.expr | None, value: object, absent: bool = False) -> bool:
    """Whether an argument is this constant; `absent`: or is not given."""
    return absent if node is None else isinstance(node, ast.Constant) and node.value == value


def unsafe_calls(code: str) -> Iterator[Finding]:
    """All that a module should not have, in the order of its lines."""
    finder = Finder()
    tree = ast.parse(code)
    # Imports may stand below the functions that use them.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            finder.visit_Import(node)
        elif isinstance(node, ast.ImportFrom):
            finder.visit_ImportFrom(node)
    finder.found.clear()
    finder.visit(tree)
    return iter(sorted(set(finder.found)))
