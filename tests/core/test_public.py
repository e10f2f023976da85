"""What fxprune offers: names that exist, belong together, and describe their arguments."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from typing import Any

import pytest

import fxprune
import fxprune.functional

MODULES = [f"fxprune.{found.name}" for found in pkgutil.iter_modules(fxprune.__path__)]
IMPORTABLE = [name for name in MODULES if name not in ("fxprune.__main__", "fxprune.passes")]
OFFERED = [(module, name) for module in (fxprune, fxprune.functional) for name in module.__all__]
each_name = pytest.mark.parametrize(
    ("module", "name"), OFFERED, ids=[f"{module.__name__}.{name}" for module, name in OFFERED]
)


def test_public_names_are_sorted_and_what_a_star_imports():
    assert fxprune.__all__ == sorted(fxprune.__all__)
    assert fxprune.functional.__all__ == sorted(fxprune.functional.__all__)
    space: dict[str, Any] = {}
    exec("from fxprune import *", space)
    assert sorted(set(space) - {"__builtins__"}) == fxprune.__all__


@each_name
def test_a_public_name_is_fxprunes_own(module: Any, name: str):
    found = getattr(module, name)
    assert inspect.isfunction(found) or inspect.isclass(found)
    assert found.__name__ == name
    assert found.__module__.partition(".")[0] == "fxprune"


@each_name
def test_every_argument_of_a_public_function_is_described(module: Any, name: str):
    found = getattr(module, name)
    if not inspect.isfunction(found):
        return
    section = re.split(r"\n\n|^(?=Raises|Returns)", inspect.getdoc(found) or "", flags=re.M)
    args = next((part for part in section if part.startswith("Args:")), "")
    described = set(re.findall(r"^    [*]{0,2}(\w+):", args, flags=re.M))
    parameters = list(inspect.signature(found).parameters)
    if len(parameters) > 1 or described:
        assert described == set(parameters)


@pytest.mark.parametrize("name", IMPORTABLE)
def test_what_a_module_lists_it_has(name: str):
    module = importlib.import_module(name)
    assert [listed for listed in module.__all__ if not hasattr(module, listed)] == []


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
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, fxprune.FxpruneError)
        if kind is not fxprune.FxpruneError:
            assert issubclass(kind, (ValueError, TypeError, RuntimeError, ImportError))
        assert kind.__doc__
