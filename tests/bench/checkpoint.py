"""Measure pruning a checkpoint on disk against copying it in chunks of the same size.

    python -m tests.bench.checkpoint --size 2G --dtype float32 bfloat16 --folder /dev/shm

Each run is a process of its own, which reports its resident set after the imports and its peak.
Copies and prunings take turns; ratios are medians over the rounds. The files are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from fxprune.checkpoint.checkpoint import prune_checkpoint
from fxprune.checkpoint.source import PIECE

UNITS = {"M": 2**20, "G": 2**30}
LAYER = 2**26  # bytes of a tensor
RECIPES: dict[str, list[dict[str, Any]]] = {
    "global": [{"method": "l1_unstructured", "scope": "global", "amount": 0.5}],
    "local": [{"method": "l1_unstructured", "amount": 0.5}],
    "two rules": [
        {"method": "l1_unstructured", "scope": "global", "amount": 0.3},
        {"method": "l1_unstructured", "scope": "global", "amount": 0.3},
    ],
    "random": [{"method": "random_unstructured", "scope": "global", "amount": 0.5, "seed": 0}],
    "norm": [{"method": "ln_structured", "n": 2, "dim": 0, "amount": 0.5}],
}


@dataclass(frozen=True)
class Run:
    """What one process measured.

    Args:
        seconds: wall time.
        cpu: processor time of all threads.
        before: resident bytes before the call, after the imports.
        peak: the most resident bytes until the end.
    """

    seconds: float
    cpu: float
    before: int
    peak: int


def build(folder: Path, size: int, dtype: torch.dtype) -> Path:
    """Write an index and its shards, of normal weights, without much memory."""
    torch.manual_seed(0)
    places: dict[str, str] = {}
    count = max(size // LAYER, 1)
    for shard in range(0, count, 8):
        name = f"model-{shard // 8:05}.safetensors"
        tensors = {
            f"layers.{at:03}.weight": (torch.randn(LAYER // dtype.itemsize) * 0.02)
            .to(dtype)
            .view(1024, -1)
            for at in range(shard, min(shard + 8, count))
        }
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


def copy(folder: Path, out: Path, chunk: int) -> None:
    """Copy the shards through one buffer."""
    out.mkdir()
    view = memoryview(bytearray(chunk))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", 0) as target:
            while count := source.readinto(view):
                target.write(view[:count])


def child(form: str, index: Path, out: Path, chunk: int) -> Run:
    """Do one thing and measure it, in this process."""
    recipe = {"rule": [{"select": "*", **rule} for rule in RECIPES.get(form, [])]}
    before = _status("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    if form == "copy":
        copy(index.parent, out, chunk)
    else:
        prune_checkpoint(index, recipe, out)
    took = time.perf_counter() - wall, time.process_time() - cpu
    return Run(*took, before, _status("VmHWM"))


def measured(form: str, index: Path, chunk: int) -> Run:
    """Do one thing in a fresh process."""
    out = index.parent.parent / "out"
    command = [sys.executable, "-m", "tests.bench.checkpoint", "--child", form]
    more = ["--folder", str(index), "--out", str(out), "--chunk", str(chunk)]
    try:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return Run(**json.loads(done.stdout))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def rows_of(runs: dict[str, list[Run]]) -> list[tuple[str, ...]]:
    """Return the figures of each form: ratios to the copy of the same round, and memory."""
    rows: list[tuple[str, ...]] = []
    for form, own in runs.items():
        pairs = list(zip(own, runs["copy"], strict=True))
        wall = statistics.median(run.seconds / base.seconds for run, base in pairs)
        cpu = statistics.median(run.cpu / base.cpu for run, base in pairs)
        growth = max(run.peak - run.before for run in own) / 2**20
        peak = max(run.peak for run in own) / 2**20
        seconds = statistics.median(run.seconds for run in own)
        rows.append(
            (form, f"{seconds:.2f}", f"{wall:.2f}", f"{cpu:.2f}", f"{growth:.0f}", f"{peak:.0f}")
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.checkpoint", description=__doc__)
    parser.add_argument("--size", default="2G", help="of the checkpoint, as 512M or 2G")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--forms", nargs="+", default=["global"], choices=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=PIECE, help="bytes")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        run = child(options.child, options.folder, options.out, options.chunk)
        sys.stdout.write(json.dumps(asdict(run)))
        return
    size = int(options.size[:-1]) * UNITS[options.size[-1]]
    console = Console()
    for dtype in options.dtype:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            source = Path(name, "in")
            source.mkdir()
            index = build(source, size, getattr(torch, dtype))
            runs: dict[str, list[Run]] = {form: [] for form in ("copy", *options.forms)}
            for _ in range(options.rounds):
                for form, own in runs.items():
                    own.append(measured(form, index, options.chunk))
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("form", "s", "wall x copy", "cpu x copy", "growth MiB", "peak MiB"):
            table.add_column(title, justify="right")
        for row in rows_of(runs):
            table.add_row(*row)
        console.print(
            f"{options.size} {dtype} in {options.folder}, chunks of {options.chunk:,} bytes, "
            f"medians of {options.rounds}, threads {torch.get_num_threads()}, "
            f"load {os.getloadavg()[0]:.1f}",
            highlight=False,
        )
        console.print(table)


if __name__ == "__main__":
    main()
