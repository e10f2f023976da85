"""The wheel, outside the checkout: both packages, the type marker, the passes' entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough  # builds it

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "fxprune", "passes")
PROBE = """
import importlib.metadata, json
import fxprune, fxprune.passes
entries = importlib.metadata.entry_points(group="fxprune.passes")
print(json.dumps({
    "fxprune": fxprune.__file__,
    "passes": fxprune.passes.__file__,
    "table": {entry.name: entry.value for entry in entries},
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy so that the checkout stays clean."""
    base = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, base / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(base), base / "source"]
    subprocess.run([sys.executable, *build], check=True)
    (wheel,) = base.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(base / "installed")
    return base / "installed"


def test_wheel_is_imported_from_where_it_lies(installed: Path, tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE
    )
    seen = json.loads(run.stdout)
    assert Path(seen["fxprune"]) == installed / "fxprune" / "__init__.py"
    assert Path(seen["passes"]) == installed / "fxprune" / "passes" / "__init__.py"
    assert seen["table"] == {"fxprune": "fxprune.passes.table:PASSES"}


@pytest.mark.parametrize("package", ["fxprune", "fxprune/passes"])
def test_wheel_is_typed(installed: Path, package: str):
    assert (installed / package / "py.typed").is_file()


def test_wheel_holds_nothing_else(installed: Path):
    names = {path.name for path in installed.iterdir()}
    assert names == {"fxprune", "fxprune-0.1.0.dist-info"}
