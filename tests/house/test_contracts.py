"""The shape of the code: rooms on floors, and docstrings of public names. Ruff holds the rest."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import fxprune

ROOT = Path(__file__).parents[2]
FOLDERS = {".ci", "examples", "fxprune", "passes", "tests"}
FLOORS = (
    {"support", "errors", "words"},
    {"program"},
    {"rewrite"},
    {"recipe", "ranking", "channels"},
    {"verification"},
    {"frontends", "files", "reports"},
    {"passes"},
    {"compiler"},
    {"training", "checkpoint"},
    {"cli", "testing", "functional", "__init__", "__main__"},
)
"""Rooms from the ground up. Those of the ground know each other, and so do the doors at the top."""


@cache
def modules() -> dict[str, Path]:
    """Every file of fxprune and of the passes, by its dotted name; a room's door has the room's."""
    paths = {
        ("fxprune", *path.relative_to(ROOT / "fxprune").parts): path
        for path in (ROOT / "fxprune").rglob("*.py")
    } | {
        ("fxprune", "passes", *path.relative_to(ROOT / "passes").parts): path
        for path in (ROOT / "passes").rglob("*.py")
    }
    return {
        ".".join(parts).removesuffix(".py").removesuffix(".__init__"): path
        for parts, path in paths.items()
    }


def imported(name: str) -> Iterator[str]:
    """The modules of fxprune that a module imports, in functions and for type checkers too."""
    path = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            if source.partition(".")[0] == "fxprune":
                inner = [f"{source}.{alias.name}" for alias in node.names]
                yield from (name if name in modules() else source for name in inner)


@cache
def imports() -> tuple[tuple[str, str], ...]:
    return tuple((name, other) for name in sorted(modules()) for other in sorted({*imported(name)}))


def room(name: str) -> str:
    """The room in which a module is: the name after `fxprune`."""
    return name.split(".")[1] if "." in name else "__init__"


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


def in_one_room(name: str, other: str) -> bool:
    ends = floor(name) == floor(other) and floor(name) in (0, len(FLOORS) - 1)
    return room(name) == room(other) or ends


def test_every_file_is_in_a_room():
    assert [name for name in modules() if not any(room(name) in rooms for rooms in FLOORS)] == []


def test_imports_go_down_or_stay_in_their_room():
    assert [
        f"{name} imports {other}"
        for name, other in imports()
        if floor(other) >= floor(name) and not in_one_room(name, other)
    ] == []


def test_other_rooms_are_entered_by_their_door():
    """From a room's `__init__` come its names and its files, from a file nothing."""
    doors = {".".join(name.split(".")[:-1]) for name in modules() if name.count(".") > 1}
    assert [
        f"{name} imports from {node.module}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in modules()
        if room(name) != room(node.module) and node.module.count(".") > 1
        if node.module not in doors
    ] == []


def test_imports_have_no_circle():
    circles = nx.strongly_connected_components(nx.DiGraph(imports()))
    assert [sorted(circle) for circle in circles if len(circle) > 1] == []


@pytest.mark.smoke
def test_the_compiler_imports_no_pass():
    assert [
        f"{name} imports {other}"
        for name, other in imports()
        if room(other) == "passes" and room(name) != "passes"
    ] == []


def test_passes_import_the_compiler_absolutely_and_themselves_relatively():
    found = list[str]()
    for path in sorted((ROOT / "passes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [source]
            if any(name.startswith(("passes", "fxprune.passes")) for name in names):
                found.append(f"{path.name} imports {names[0]}")
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                found.append(f"{path.name} imports {'.' * node.level}{source}")
    assert found == []


def test_public_names_are_few():
    assert len(fxprune.__all__) <= 25


def test_public_names_have_a_docstring():
    docs = {name: getattr(fxprune, name).__doc__ for name in fxprune.__all__}
    # A dataclass without a docstring gets its signature.
    assert [name for name, doc in docs.items() if not doc or doc.startswith(f"{name}(")] == []


def test_no_other_top_level_folder():
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout: only tracked files are the project's")
    tracked = {Path(name) for name in result.stdout.split("\0") if name}
    assert {path.parts[0] for path in tracked if len(path.parts) > 1} <= FOLDERS
