"""Prune a checkpoint that need not fit in memory: from safetensors files to safetensors files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.checkpoint.rules import Rules, check_recipe, weights_of
from fxprune.checkpoint.source import Checkpoint, Workers, open_checkpoint
from fxprune.checkpoint.target import ShardWriter, Target, target_of
from fxprune.checkpoint.weights import Spill
from fxprune.compiler import stages_of
from fxprune.program import RuleRecord
from fxprune.recipe import Recipe
from fxprune.reports import record_data
from fxprune.support import PathLike
from fxprune.words import plain_table

OnProgress = Callable[[str, int, int], None]
_NO_EXPORT = "[export] was left out: a checkpoint is written in the layout in which it was read"
_HEADER = ("rule", "method", "tensors", "alive", "pruned")
_RIGHT = frozenset({"tensors", "alive", "pruned"})


@dataclass(frozen=True)
class CheckpointReport:
    """What pruning did to a checkpoint; `print` it, or take it as JSON.

    Args:
        files: what was written, the index last.
        bytes: their size.
        tensors: how many tensors they hold.
        pruned: how many of these a rule took.
        rules: what each rule did, in order, with one record a tensor.
        seconds: wall time of each rule and of "write".
        notes: what to know beside the numbers.
    """

    files: tuple[Path, ...]
    bytes: int
    tensors: int
    pruned: int
    rules: tuple[RuleRecord, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        table = plain_table(_HEADER, [_row(record) for record in self.rules], _RIGHT)
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return f"{table}\n\n{self.pruned} of {self.tensors} tensors were pruned{notes}"

    def to_json(self) -> str:
        """Return the report as JSON; a threshold that is not finite is a text."""
        rules = [{**record_data(rule), "refused": rule.refused} for rule in self.rules]
        data = {**vars(self), "files": [str(path) for path in self.files], "rules": rules}
        return json.dumps(data, indent=2, allow_nan=False)


def prune_checkpoint(
    source: PathLike,
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    out: PathLike,
    *,
    on_progress: OnProgress | None = None,
) -> CheckpointReport:
    """Prune the tensors of a checkpoint and write it again, in memory that does not grow with it.

    Rules select by path, regex, param, exclude, ndim, dtype and min_numel. What is written is, to
    the bit, what `prune` and `finalize` make of a model with these parameters; `zeros` of the
    recipe's [finalize] counts. "Parameter order" is that of the files' names and, in a file, that
    in which safetensors lists its tensors. Headers and metadata stay as they are; other files of
    the folder, as config.json, are neither read nor copied.

    Args:
        source: a `.safetensors` file, or a `.safetensors.index.json` beside its shards.
        recipe: a Recipe, a dict, or the path of a .toml or .json file.
        out: the file to write; for an index the folder, or the index in it. Files appear there
            when all are complete, earlier ones of their names are replaced.
        on_progress: called with a rule's name or "write", bytes done, and bytes to do.

    Returns:
        What each rule did.

    Raises:
        RecipeError: the recipe is at fault, or asks for what only a graph has.
        FormatError: the checkpoint is damaged, or `out` cannot be written.
        SelectError: a rule selects nothing.
        AmountError: an amount is more than is alive.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> rule = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     name, out = Path(folder, "in.safetensors"), Path(folder, "out.safetensors")
        ...     save_file({"fc.weight": torch.tensor([[1.0, -2.0], [3.0, 0.5]])}, name)
        ...     report = prune_checkpoint(name, {"rule": [rule]}, out)
        ...     load_file(out)["fc.weight"]
        tensor([[ 0., -2.],
                [ 3.,  0.]])
    """
    # An imported method is refused for what it is, not for being imported.
    rules = Recipe.of(recipe, allow_imports=True)
    check_recipe(rules)
    with open_checkpoint(source) as checkpoint:
        target = target_of(checkpoint, out)
        with target.replacing() as aside:
            return _prune(checkpoint, rules, target, aside, on_progress or (lambda *step: None))


def _prune(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, aside: Path, on_progress: OnProgress
) -> CheckpointReport:
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        workers, spill = Workers(), Spill(aside)
        stack.callback(spill.close)
        stack.callback(workers.close)
        weights, refused = weights_of(checkpoint, workers.room)
        sites = [stored.site for _, stored in checkpoint.tensors.values()]
        rules = Rules(sites, weights, refused, workers, spill, stack)
        records = [rules.run(s.rules, s.name, on_progress) for s in stages_of(recipe)]
        for record in records:
            seconds[record.rule] = record.seconds["rank"]
        began, done = time.perf_counter(), 0

        def on_write(count: int) -> None:
            nonlocal done
            done += count
            on_progress("write", done, checkpoint.size)

        clean = recipe.finalize is not None and recipe.finalize.zeros == "clean"
        writer = ShardWriter(weights, workers, on_write, clean=clean)
        for shard, name in zip(checkpoint.shards, target.names, strict=False):
            writer.write(shard, aside / name)
            shard.check_unchanged()
        if checkpoint.index is not None:
            (aside / target.names[-1]).write_bytes(checkpoint.index)
        seconds["write"] = time.perf_counter() - began
    return CheckpointReport(
        files=target.paths,
        bytes=target.size,
        tensors=len(checkpoint.tensors),
        pruned=sum(bool(weight.factors) for weight in weights.values()),
        rules=tuple(records),
        seconds=seconds,
        notes=() if recipe.export is None else (_NO_EXPORT,),
    )


def _row(record: RuleRecord) -> tuple[str, ...]:
    counted = any(row.pruned is not None for row in record.parameters)
    counts = (f"{n:,}" if counted else "" for n in (record.alive, record.pruned))
    return (record.rule, record.method, str(len(record.parameters)), *counts)
