"""The shape of the code: who imports whom, sizes, docstrings, public names."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fxprune

ROOT = Path(__file__).parents[2]
COMPILER = sorted((ROOT / "fxprune").glob("**/*.py"))
PASSES = sorted((ROOT / "passes").glob("**/*.py"))
FOLDERS = {".ci", "examples", "fxprune", "passes", "tests"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

each_compiler_file = pytest.mark.parametrize("path", COMPILER, ids=lambda path: path.stem)
each_pass_file = pytest.mark.parametrize("path", PASSES, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize(
    "path", COMPILER + PASSES, ids=lambda path: f"{path.parent.name}.{path.stem}"
)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted name of each import; a relative one keeps its leading dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (prefix + alias.name for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring left out: documentation is not complexity."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is None:
        return lines
    doc = node.body[0]
    return lines - ((doc.end_lineno or doc.lineno) - doc.lineno + 1)


def names_in_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


@each_compiler_file
def test_compiler_never_imports_passes(path: Path):
    assert [name for name in imported(parse(path)) if "passes" in name.split(".")] == []


@each_pass_file
def test_passes_import_the_compiler_absolutely_and_themselves_relatively(path: Path):
    names = list(imported(parse(path)))
    assert [name for name in names if name.startswith("..")] == []
    assert [name for name in names if name.startswith(("passes", "fxprune.passes"))] == []


@each_file
def test_imports_stand_at_the_top(path: Path):
    assert [name for node in functions(parse(path)) for name in imported(node)] == []


@each_file
def test_files_are_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


@each_file
def test_functions_are_short(path: Path):
    assert {node.name: length(node) for node in functions(parse(path)) if length(node) >= 40} == {}


@each_file
def test_modules_say_what_they_are(path: Path):
    assert ast.get_docstring(parse(path))


@each_compiler_file
def test_modules_list_their_names(path: Path):
    names = names_in_all(parse(path))
    assert names is not None
    assert len(names) == len(set(names))


@each_file
def test_what_other_modules_take_is_listed(path: Path):
    tree = parse(path)
    taken = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fxprune.")
        for alias in node.names
    ]
    files = {name: ROOT / Path(*str(name).split(".")).with_suffix(".py") for name, _ in taken}
    listed = {name: names_in_all(parse(file)) for name, file in files.items() if file.exists()}
    assert [(m, name) for m, name in taken if m in listed and name not in (listed[m] or ())] == []


@each_file
def test_library_neither_prints_nor_asserts(path: Path):
    nodes = list(ast.walk(parse(path)))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if ast.unparse(call.func) == "print"] == []
    assert [node.lineno for node in nodes if isinstance(node, ast.Assert)] == []


def named_in_the_map() -> set[str]:
    """The names of files, some with a *, in CONTRIBUTING's table of where things are."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return {name.rpartition("/")[2] for name in re.findall(r"`([\w/*]+\.py)`", "\n".join(rows))}


def test_the_map_names_every_module_of_the_compiler_and_no_other_file():
    names, compiler = named_in_the_map(), {path.name for path in COMPILER}
    there = compiler | {path.name for path in PASSES}
    assert [name for name in sorted(names) if not fnmatch.filter(there, name)] == []
    found = {file for name in names for file in fnmatch.filter(compiler, name)}
    assert sorted(compiler - found) == []


def test_public_names_are_few():
    assert len(fxprune.__all__) <= 25


@pytest.mark.parametrize("name", getattr(fxprune, "__all__", []))
def test_public_names_have_a_docstring(name: str):
    doc = getattr(fxprune, name).__doc__
    assert doc
    assert not doc.startswith(f"{name}("), "a dataclass without a docstring gets its signature"


def test_no_other_top_level_folder():
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout: only tracked files are the project's")
    tracked = {Path(name) for name in result.stdout.split("\0") if name}
    assert {path.parts[0] for path in tracked if len(path.parts) > 1} <= FOLDERS
