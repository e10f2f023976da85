"""The kinds of input: each makes one case and hands it to what reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli.app import app
from fxprune.cli.models import draw_inputs, parse_input
from fxprune.cli.request import parse_batch
from fxprune.compiler.dry_run import plan
from fxprune.files.masks import WRITERS, fit_masks, read_masks
from fxprune.files.pt2 import load_pt2
from fxprune.files.writers import read_weights
from fxprune.rewrite.pattern import parse
from tests.fuzz.bytes_of import broken_bytes, broken_data, odd_text, odd_value, with_header


@dataclass(frozen=True)
class Seeds:
    """Good inputs, to be broken.

    Args:
        folder: where files go.
        canary: a path that only code in an input would make.
        program: a masked Program.
        files: good files, by kind.
        recipe: a good recipe.
    """

    folder: Path
    canary: Path
    program: fxprune.Program
    files: Mapping[str, bytes]
    recipe: Any


def seeds(folder: Path) -> Seeds:
    """Make the good inputs in a folder."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    program = fxprune.capture(model, (torch.randn(3, 4),))
    recipe = {
        "version": 1,
        "rule": [
            {"name": "a", "select": {"op": ["linear"], "path": "*.weight", "regex": r"^\d",
             "exclude": ["3.*"], "ndim": 2}, "method": "l1_unstructured", "amount": 0.5,
             "scope": "global", "group": "g"},
            {"match": "relu(batch_norm(linear(_, W)))", "prune": "W", "method": "ln_structured",
             "n": 2, "dim": 0, "amount": 1},
            {"select": "*", "score": "random", "granularity": "element", "amount": 2, "seed": 1,
             "optional": True},
        ],
        "finalize": {"zeros": "clean"},
        "export": {"formats": ["fxp", "safetensors"]},
    }  # fmt: skip
    masked = fxprune.prune(program, recipe)
    files = {"recipe": json.dumps(recipe).encode(), "plan": b"", "fxp": b"", "pt2": b""}
    for kind in ("fxp", "pt2"):
        files[kind] = fxprune.export(masked, folder / f"good.{kind}").read_bytes()
    plan(program, recipe).save(folder / "plan.json")
    files["plan"] = (folder / "plan.json").read_bytes()
    state = {key: value.detach().contiguous() for key, value in masked.state_dict().items()}
    files["safetensors"] = safetensors_bytes(state)
    for name, state_for in WRITERS.items():
        files[f"masks {name}"] = _saved(state_for(masked))
    return Seeds(folder, folder / "ran", masked, files, recipe)


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def _path(seeds: Seeds, suffix: str, raw: bytes) -> Path:
    path = seeds.folder / f"case{suffix}"
    path.write_bytes(raw)
    return path


def recipe_bytes(seeds: Seeds, chance: random.Random) -> None:
    """Recipe files of JSON and of TOML, broken."""
    if chance.random() < 0.5:
        path = _path(seeds, ".json", broken_bytes(seeds.files["recipe"], chance))
    else:
        text = _toml(seeds.recipe)
        path = _path(seeds, ".toml", broken_bytes(text.encode(), chance))
    fxprune.Recipe.load(path)


def _toml(recipe: Any) -> str:
    lines = ["version = 1"]
    for rule in recipe["rule"]:
        lines += ["[[rule]]", *(f"{key} = {_toml_value(value)}" for key, value in rule.items())]
    return "\n".join([*lines, "[finalize]", "zeros = 'clean'", ""])


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def recipe_data(seeds: Seeds, chance: random.Random) -> None:
    """Recipes as data, run where they can be."""
    recipe = fxprune.Recipe.from_dict(broken_data(seeds.recipe, chance))
    fxprune.prune(fxprune.unmask(seeds.program), recipe)


def patterns(seeds: Seeds, chance: random.Random) -> None:
    """Patterns, broken or nested deeply, searched for."""
    text = "(relu|gelu)(batch_norm(linear(_, W, b), *, training=False)!)"
    choice = chance.randrange(4)
    if choice == 0:
        raw = broken_bytes(text.encode(), chance).decode("utf-8", "replace")
    elif choice == 1:
        raw = odd_text(chance)
    elif choice == 2:
        raw = "relu(" * chance.choice((5, 30, 500, 10**5)) + "W" + ")" * chance.choice((5, 30, 500))
    else:
        words = ["relu", "W", "_", "(", ")", ",", "|", "*", "[", "]", "!", "=", "1", "'a'", "\n"]
        raw = "".join(chance.choices(words, k=chance.choice((5, 20, 200))))
    parse(raw)
    rule = {"match": raw, "prune": "W", "method": "identity", "optional": True}
    fxprune.prune(seeds.program, {"rule": [rule]})


def globs_and_regexes(seeds: Seeds, chance: random.Random) -> None:
    """Globs and regular expressions that may take long."""
    parts = [
        "a",
        "*",
        "?",
        "[a-z]",
        "[!b]",
        "(a|a)*",
        "(\\w+)+",
        ".*",
        "(",
        ")",
        "|",
        "{3}",
        "^",
        "$",
    ]
    parts += ["\\d", "(?=a)", "(?!b)", "+", "(?i)", "{1,50}", "x", "[", "\\", "(?:", "weight"]
    text = "".join(chance.choices(parts, k=chance.choice((2, 6, 20, 100))))
    key = chance.choice(("path", "regex", "exclude"))
    rule = {"select": {key: text}, "method": "identity", "optional": True}
    fxprune.prune(seeds.program, {"rule": [rule]})


def programs(seeds: Seeds, chance: random.Random) -> None:
    """.fxp files, broken in bytes, in the header or in the document; run where they load."""
    raw = seeds.files["fxp"]
    if chance.random() < 0.4:
        fxprune.load(_path(seeds, ".fxp", broken_bytes(raw, chance)))
        return
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    document = json.loads(header["__metadata__"]["fxprune"])
    header["__metadata__"]["fxprune"] = json.dumps(broken_data(document, chance))
    if chance.random() < 0.2:
        header = broken_data(header, chance)
    program = fxprune.load(_path(seeds, ".fxp", with_header(header, data, chance)))
    str(fxprune.report(program))


def weights(seeds: Seeds, chance: random.Random) -> None:
    """Weights in safetensors and in pickles, broken."""
    if chance.random() < 0.5:
        raw = seeds.files["safetensors"]
        size = struct.unpack("<Q", raw[:8])[0]
        if chance.random() < 0.5:
            header = broken_data(json.loads(raw[8 : 8 + size]), chance)
            raw = with_header(header, raw[8 + size :], chance)
        else:
            raw = broken_bytes(raw, chance)
        read_weights(_path(seeds, ".safetensors", raw))
        return
    read_weights(_path(seeds, chance.choice((".pt", ".bin")), _pickles(seeds, chance)))


def _pickles(seeds: Seeds, chance: random.Random) -> bytes:
    """A pickle of torch's, zip or not: broken, or with code in it."""
    raw = seeds.files[f"masks {chance.choice(list(WRITERS))}"]
    choice = chance.randrange(5)
    if choice == 0:
        return broken_bytes(raw, chance)
    if choice == 1:
        return _saved({"a": _Evil(seeds.canary), "b": torch.ones(2)})
    if choice == 2:
        return pickle.dumps(_Evil(seeds.canary), protocol=chance.randrange(6))
    if choice == 3:
        stream = io.BytesIO()
        torch.save({"weight": torch.ones(3)}, stream, _use_new_zipfile_serialization=False)
        return broken_bytes(stream.getvalue(), chance)
    return _rezipped(raw, chance, lambda name: name.endswith("data.pkl"))


def _rezipped(raw: bytes, chance: random.Random, which: Callable[[str], bool]) -> bytes:
    """A zip with some members broken, packed, doubled or gone."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            data, name = old.read(info), info.filename
            if which(name) or chance.random() < 0.05:
                data = broken_bytes(data, chance)
            if chance.random() < 0.03:
                name = odd_text(chance).replace("\0", "") or "x"
            if chance.random() < 0.03:
                continue
            packed = zipfile.ZIP_DEFLATED if chance.random() < 0.03 else zipfile.ZIP_STORED
            with contextlib.suppress(UnicodeEncodeError):
                new.writestr(name, data, packed)
    return stream.getvalue()


def masks(seeds: Seeds, chance: random.Random) -> None:
    """Mask files of every tool, broken, and matched with a Program."""
    if chance.random() < 0.3:
        keys = ["0.weight", "0.weight_mask", "state", "groups", "0", "parametrizations.w.0.mask"]
        keys += ["__weight_mma_mask", "weight", odd_text(chance)]
        values: list[Any] = [torch.ones(3, 4), torch.ones(2), None, odd_value(chance), {}]
        values += [{"weight": torch.zeros(3, 4)}, {"mask": torch.ones(3)}, torch.tensor(0.5)]
        content = {chance.choice(keys): chance.choice(values) for _ in range(chance.randint(0, 4))}
        raw = _saved(content)
    else:
        raw = _pickles(seeds, chance)
    binary = chance.random() < 0.5
    fit_masks(seeds.program, read_masks(_path(seeds, ".pt", raw), binary=binary))


def pt2(seeds: Seeds, chance: random.Random) -> None:
    """.pt2 files, broken in bytes, in members or in the graph."""
    raw = seeds.files["pt2"]
    choice = chance.randrange(4)
    if choice == 0:
        raw = broken_bytes(raw, chance)
    elif choice == 1:
        part = chance.choice(("sample_inputs", "model.json", "config.json", "weight_0"))
        raw = _rezipped(raw, chance, lambda name: part in name)
    else:
        stream = io.BytesIO()
        place = chance.choice(("models/model.json", "weights_config.json"))
        with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w") as new:
            for info in old.infolist():
                data = old.read(info)
                if info.filename.endswith(place):
                    data = json.dumps(broken_data(json.loads(data), chance)).encode()
                if choice == 3 and "sample_inputs" in info.filename:
                    data = _saved(((_Evil(seeds.canary),), {}))
                new.writestr(info.filename, data)
        raw = stream.getvalue()
    fxprune.capture(load_pt2(_path(seeds, ".pt2", raw)))


def plans(seeds: Seeds, chance: random.Random) -> None:
    """Plan files, broken in bytes and in data."""
    raw = seeds.files["plan"]
    if chance.random() < 0.4:
        raw = broken_bytes(raw, chance)
    else:
        raw = json.dumps(broken_data(json.loads(raw), chance)).encode()
    found = fxprune.Plan.load(_path(seeds, ".json", raw))
    fxprune.prune(fxprune.unmask(seeds.program), found)


def inputs(seeds: Seeds, chance: random.Random) -> None:
    """`--input` and `--batch`."""
    parts = [
        "x=",
        "int64:",
        "float32:",
        "1",
        ",",
        "3",
        "..",
        ":",
        "0",
        "-",
        "()",
        "9" * 20,
        "bool:",
    ]
    text = "".join(chance.choices(parts, k=chance.randint(1, 7)))
    text = text if chance.random() < 0.7 else odd_text(chance)
    chance.choice((parse_batch, parse_input, lambda t: draw_inputs([t])))(text)


def commands(seeds: Seeds, chance: random.Random) -> None:
    """Command lines: exit code 0, 1 or 2, and no traceback."""
    good = [str(seeds.folder / "good.fxp"), str(seeds.folder / "plan.json")]
    words = ["compile", "inspect", "explain", "plan", "verify", "passes", "schema", "--recipe"]
    words += [
        "--input",
        "--out",
        "--weights",
        "--batch",
        "none",
        "1,4",
        "--json",
        "--diff",
        "--plan",
    ]
    words += ["--against", "--promise", "close", "--trials", "1", "-1", "--help", "no.module:x"]
    words += [str(seeds.folder), "/dev/null", "missing.fxp", str(seeds.folder / "pipe"), *good * 3]
    given = [chance.choice(words[:7])]
    given += [
        chance.choice(words) if chance.random() < 0.8 else odd_text(chance)
        for _ in range(chance.randint(0, 6))
    ]
    # Nothing may be written into the current folder by chance.
    given = [word for at, word in enumerate(given) if "--out" not in given[max(0, at - 1) : at + 1]]
    result = CliRunner().invoke(app, given)
    if result.exit_code not in (0, 1, 2) or "Traceback" in result.output:
        raise AssertionError(f"{given}: exit code {result.exit_code}: {result.exception!r}")


KINDS: Mapping[str, Callable[[Seeds, random.Random], None]] = {
    "recipe bytes": recipe_bytes,
    "recipe data": recipe_data,
    "patterns": patterns,
    "globs, regexes": globs_and_regexes,
    ".fxp": programs,
    "weights": weights,
    "masks": masks,
    ".pt2": pt2,
    "plans": plans,
    "--input": inputs,
    "command lines": commands,
}
# How many of 100 cases are of a kind: those that take long are fewer.
SHARES: Mapping[str, int] = {
    "recipe bytes": 14,
    "recipe data": 8,
    "patterns": 14,
    "globs, regexes": 8,
    ".fxp": 8,
    "weights": 12,
    "masks": 10,
    ".pt2": 4,
    "plans": 8,
    "--input": 12,
    "command lines": 2,
}
