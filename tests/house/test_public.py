"""What fxprune offers: names that exist, belong together, and describe their arguments."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

import fxprune.functional

OFFERED = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (fxprune, fxprune.functional)
    for name in module.__all__
}


def test_public_names_are_sorted_and_what_a_star_imports():
    assert fxprune.__all__ == sorted(fxprune.__all__)
    assert fxprune.functional.__all__ == sorted(fxprune.functional.__all__)
    space: dict[str, Any] = {}
    exec("from fxprune import *", space)
    assert sorted(set(space) - {"__builtins__"}) == fxprune.__all__


@pytest.mark.smoke
def test_public_names_are_fxprunes_own():
    assert [name for name, found in OFFERED.items() if not is_own(name, found)] == []


def is_own(name: str, found: Any) -> bool:
    """Whether a function or class was made in fxprune, under the name that it is offered by."""
    kind = inspect.isfunction(found) or inspect.isclass(found)
    return kind and found.__name__ == name.rpartition(".")[2] and made_in(found) == "fxprune"


def made_in(found: Any) -> str:
    return found.__module__.partition(".")[0]


def test_every_argument_of_a_public_function_is_described():
    functions = {name: found for name, found in OFFERED.items() if inspect.isfunction(found)}
    assert [name for name, found in functions.items() if not describes_arguments(found)] == []


def describes_arguments(function: Any) -> bool:
    """Whether a docstring has each argument, or none where there is one."""
    section = re.split(r"\n\n|^(?=Raises|Returns)", inspect.getdoc(function) or "", flags=re.M)
    args = next((part for part in section if part.startswith("Args:")), "")
    described = set(re.findall(r"^    [*]{0,2}(\w+):", args, flags=re.M))
    parameters = list(inspect.signature(function).parameters)
    return described == set(parameters) or (len(parameters) <= 1 and not described)


def test_what_a_door_lists_it_has():
    found = pkgutil.walk_packages(fxprune.__path__, "fxprune.")
    names = [module.name for module in found if module.name != "fxprune.__main__"]
    doors = [fxprune, *(m for m in map(importlib.import_module, names) if hasattr(m, "__path__"))]
    listed = [(door, name) for door in doors for name in dir(door)]
    assert [f"{door.__name__}.{name}" for door, name in listed if not hasattr(door, name)] == []


def test_a_lazy_door_gives_what_type_checkers_see():
    package = Path(fxprune.__path__[0])
    for path in package.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not (calls := [n for n in tree.body if isinstance(n, ast.Assign) and _is_table(n)]):
            continue
        table = ast.literal_eval(cast("ast.Call", calls[0].value).args[1])
        typed = next(node for node in tree.body if isinstance(node, ast.If))
        seen = {a.name for n in ast.walk(typed) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert {name for names in table.values() for name in names.split()} == seen, path
        door = importlib.import_module(".".join(path.parent.relative_to(package.parent).parts))
        assert seen <= set(dir(door))


def _is_table(node: ast.Assign) -> bool:
    return ast.unparse(node.value).startswith("lazy_names(")


def test_importing_fxprune_is_quiet_and_imports_no_pass():
    code = (
        "import sys, fxprune\n"
        "found = [name for name in sys.modules if name.startswith('fxprune.passes')]\n"
        "assert found == [], found\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_errors_derive_from_one_base_and_from_what_torch_raises():
    errors = importlib.import_module("fxprune.errors")
    kinds = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert fxprune.FxpruneError in kinds
    for kind in kinds:
        assert issubclass(kind, fxprune.FxpruneError)
        if kind is not fxprune.FxpruneError:
            assert issubclass(kind, (ValueError, TypeError, RuntimeError, ImportError))
        assert kind.__doc__
