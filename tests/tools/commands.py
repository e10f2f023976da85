"""Running the command line, and what a refusal of it looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fxprune.cli.app import app

RECIPE = """
[[rule]]
name   = "weights"
select = { op = ["conv2d", "linear"], param = "weight" }
method = "l1_unstructured"
scope  = "global"
amount = 0.5

[finalize]

[export]
formats = ["safetensors"]
"""


def run(*args: str, **options: Any) -> Any:
    """Run `fxprune` with these arguments, in this process."""
    return CliRunner().invoke(app, args, **options)


def refused(result: Any) -> str:
    """Check that a command ended as it must on bad input, and return its message."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if "a chatty" not in line]
    assert lines[0].startswith("Error: ")
    assert sum(line.startswith("Error") for line in lines) == 1
    return "\n".join(lines)


def files(folder: Path) -> dict[str, bytes]:
    """All files by their name, but for the bytecode of imported modules."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found if path.suffix != ".pyc"}
