"""What every test shares: hypothesis profiles, one torch thread, golden files."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fxprune.passes
from tests.models import store

Golden = Callable[[str, str, str], None]
"""Takes a folder, a case and a text, and holds the text to tests/golden/<folder>/<case>.txt."""

GOLDEN_DIR = Path(__file__).parent / "golden"

SAME = bool(os.environ.get("CI"))  # the same examples in each run
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("quick", max_examples=100, deadline=None, derandomize=SAME)
settings.register_profile("thorough", max_examples=100, deadline=None, derandomize=SAME)
settings.register_profile("nightly", max_examples=2000, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the hypothesis profile, and give doctests the passes under their installed name."""
    default = "thorough" if config.getoption("markexpr") == "thorough" else "quick"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", default))
    if store.FOLDER not in os.environ:  # the first process of the session; workers are its children
        folder = tempfile.TemporaryDirectory()
        os.environ[store.FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)
    torch.set_num_threads(1)
    _alias_passes()


def _alias_passes() -> None:
    """Let pytest, which names a file by its folder, find passes/x.py as fxprune.passes.x.

    Without this each pass would be imported twice, and its classes would differ from themselves.
    """
    sys.modules["passes"] = fxprune.passes
    for found in pkgutil.iter_modules(fxprune.passes.__path__):
        module = importlib.import_module(f"fxprune.passes.{found.name}")
        sys.modules[f"passes.{found.name}"] = module


@pytest.fixture
def golden() -> Golden:
    """Compare a text with a golden file, or rewrite the file if FXPRUNE_UPDATE_GOLDEN is 1."""
    return _check_golden


def _check_golden(folder: str, case: str, text: str) -> None:
    path = GOLDEN_DIR / folder / f"{case}.txt"
    actual = text.rstrip("\n") + "\n"
    if os.environ.get("FXPRUNE_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, encoding="utf-8", newline="\n")
        return
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make golden`, then read it", pytrace=False)
    expected = path.read_text(encoding="utf-8")
    if actual != expected:
        pytest.fail(_diff(expected, actual, path), pytrace=False)


def _diff(expected: str, actual: str, path: Path) -> str:
    lines = difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), str(path), "this run", lineterm=""
    )
    return "\n".join([f"{path} differs: if this is meant, run `make golden`", *lines])
