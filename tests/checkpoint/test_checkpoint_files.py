"""Checkpoints on disk: damaged ones are refused, and what is interrupted leaves no trace."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.checkpoint import source, target
from fxprune.checkpoint.checkpoint import prune_checkpoint
from fxprune.checkpoint.source import open_checkpoint, put
from fxprune.errors import FormatError
from fxprune.support.writing import swap

RECIPE = {"rule": [{"select": "*", "method": "l1_unstructured", "amount": 0.5}]}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
INDEX = "model.safetensors.index.json"

posix = pytest.mark.skipif(os.name != "posix", reason="signals and folders of POSIX")


def raw(header: object, data: int = 8) -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def sharded(folder: Path, count: int = 3, size: int = 100) -> Path:
    """An index and its shards."""
    folder.mkdir(exist_ok=True)
    places: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for at in range(count):
        places[f"t{at}"] = name = f"model-{at}.safetensors"
        save_file({f"t{at}": torch.randn(size, generator=generator)}, folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder / INDEX


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "a length alone": struct.pack("<Q", 8),
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": raw(b"pickle"),
    "no UTF-8": raw(b'{"\xff": 1}'),
    "no table": raw([1]),
    "nested deeply": raw(b"[" * 10_000),
    "a number too long": raw(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a key twice": raw(b'{"a": 1, "a": 1}'),
    "metadata that is no text": raw({"__metadata__": {"a": 1}, "a": ENTRY}),
    "metadata that is no table": raw({"__metadata__": [], "a": ENTRY}),
    "an entry that is no table": raw({"a": 1}),
    "an entry without a dtype": raw({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "an unknown dtype": raw({"a": {**ENTRY, "dtype": "F128"}}),
    "a dtype that is no text": raw({"a": {**ENTRY, "dtype": [1]}}),
    "a negative shape": raw({"a": {**ENTRY, "shape": [-2]}}),
    "a shape of bools": raw({"a": {**ENTRY, "shape": [True, 2]}}),
    "a shape too long": raw({"a": {**ENTRY, "shape": [1] * 65 + [2]}}),
    "a shape that overflows": raw({"a": {**ENTRY, "shape": [2**62, 2**62]}}),
    "offsets of another size": raw({"a": {**ENTRY, "data_offsets": [0, 4]}}),
    "offsets backwards": raw({"a": {**ENTRY, "data_offsets": [8, 0]}}),
    "one offset": raw({"a": {**ENTRY, "data_offsets": [0]}}),
    "offsets beyond the file": raw({"a": ENTRY}, data=4),
    "more than the tensors": raw({"a": ENTRY}, data=12),
    "a hole": raw({"a": {**ENTRY, "data_offsets": [4, 12]}}, data=12),
    "an overlap": raw({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, data=12),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_and_nothing_is_written(tmp_path: Path, data: bytes):
    source = tmp_path / "model.safetensors"
    source.write_bytes(data)
    with pytest.raises(FormatError, match="no whole safetensors checkpoint"):
        prune_checkpoint(source, RECIPE, tmp_path / "out.safetensors")
    assert contents(tmp_path) == {source.name: data}


@given(st.data())
def test_any_change_of_a_header_is_refused_or_read_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    good = raw({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 16]}}, data=16)
    at = data.draw(st.integers(0, len(good) - 17))
    cut = data.draw(st.integers(0, 3))
    new = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(good[:at] + new + good[at + cut :])
    try:
        with open_checkpoint(path) as found:
            assert found.size == path.stat().st_size
    except FormatError:
        pass


def test_dtypes_that_are_not_floats_are_copied(tmp_path: Path):
    kinds = (torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64)
    tensors = {str(kind): torch.ones(3).to(kind) for kind in kinds}
    save_file({**tensors, "w": torch.arange(4.0)}, tmp_path / "in.safetensors")
    report = prune_checkpoint(tmp_path / "in.safetensors", RECIPE, tmp_path / "o.safetensors")
    assert (report.tensors, report.pruned) == (len(kinds) + 1, 1)
    found = load_file(tmp_path / "o.safetensors")
    assert found["w"].tolist() == [0, 0, 2, 3]
    for name, tensor in tensors.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_dtypes_smaller_than_a_byte_are_copied(tmp_path: Path):
    header = {"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}
    header["w"] = {**ENTRY, "data_offsets": [8, 16]}
    (tmp_path / "in.safetensors").write_bytes(raw(header, 16))
    report = prune_checkpoint(tmp_path / "in.safetensors", RECIPE, tmp_path / "o.safetensors")
    assert dict(report.rules[0].refused)["a"].startswith("its dtype is F4")


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {"t0": "../model-0.safetensors"}}, "no name of a .safetensors file"),
        ({"weight_map": {"t0": "/etc/passwd"}}, "no name of a .safetensors file"),
        ({"weight_map": {"t0": "a\\b.safetensors"}}, "no name of a .safetensors file"),
        ({"weight_map": {"t0": 3}}, "no name of a .safetensors file"),
        ({"weight_map": {"t0": "none.safetensors"}}, "'none.safetensors', which this index"),
        ({"weight_map": {"t0": "a.safetensors", "t1": "b.safetensors"}}, "with 1 more of its 2"),
        ({"weight_map": {"t7": "model-0.safetensors"}}, "'t7' is not in model-0.safetensors"),
        ({"weight_map": {"t0": "model-1.safetensors"}}, "'t0' is not in model-1.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, index: Any, text: str):
    path = sharded(tmp_path / "in")
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError) as raised:
        prune_checkpoint(path, RECIPE, tmp_path / "out")
    assert text in str(raised.value)
    assert names(tmp_path) == ["in"]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path):
    path = sharded(tmp_path / "in")
    save_file({"t0": torch.ones(1), "t1": torch.ones(1)}, tmp_path / "in/model-1.safetensors")
    with pytest.raises(FormatError, match="'t0' is in model-0"):
        prune_checkpoint(path, RECIPE, tmp_path / "out")


def test_names_of_no_checkpoint_are_refused(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"")
    for name, text in (("model.bin", "is a .safetensors file, or an index"), ("x", "or an index")):
        with pytest.raises(FormatError, match=text):
            prune_checkpoint(tmp_path / name, RECIPE, tmp_path / "out")
    with pytest.raises(FormatError, match="does not exist"):
        prune_checkpoint(tmp_path / "a.safetensors", RECIPE, tmp_path / "out.safetensors")


def one(folder: Path) -> Path:
    save_file({"t": torch.arange(4.0)}, folder / "in.safetensors")
    return folder / "in.safetensors"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path):
    source, index = one(tmp_path), sharded(tmp_path / "in")
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model-0.safetensors").mkdir()
    for given_, out, text in (
        (source, tmp_path / "in", "this is a folder"),
        (source, tmp_path / "none/out.safetensors", "does not exist; make it first"),
        (source, tmp_path / "out.bin", "ends in .safetensors"),
        (source, source, "output path is the input checkpoint"),
        (index, tmp_path / "file", "this is a file"),
        (index, tmp_path / "in", "output path is the input checkpoint"),
        (index, tmp_path / "out", "this is no regular file"),
    ):
        with pytest.raises(FormatError, match=text):
            prune_checkpoint(given_, RECIPE, out)
    assert names(tmp_path) == ["file", "in", "in.safetensors", "out"]


@posix
def test_a_link_to_the_source_is_the_source(tmp_path: Path):
    source = one(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(source)
    with pytest.raises(FormatError, match="output path is the input checkpoint"):
        prune_checkpoint(source, RECIPE, tmp_path / "link.safetensors")


def test_an_index_goes_to_a_folder_that_is_there_or_under_a_name_of_its_own(tmp_path: Path):
    index = sharded(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    shards = [f"model-{at}.safetensors" for at in range(3)]
    for _ in range(2):  # the second time, files of these names are there
        prune_checkpoint(index, RECIPE, tmp_path / "out")
        assert names(tmp_path / "out") == [*shards, INDEX, "notes.txt"]
    other = tmp_path / "other/pruned.safetensors.index.json"
    report = prune_checkpoint(index, RECIPE, other)
    assert report.files[-1] == other
    assert names(tmp_path / "other") == [*shards, other.name]


def outputs(folder: Path) -> dict[str, bytes]:
    return contents(folder) if folder.exists() else {}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt]
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("calls", range(6))
def test_an_error_while_writing_leaves_everything_as_it_was(
    tmp_path: Path, error: Any, there: bool, calls: int
):
    index, out = sharded(tmp_path / "in"), tmp_path / "out"
    if there:
        prune_checkpoint(index, RECIPE, out)
        (out / "model-1.safetensors").write_bytes(b"an earlier result")
    before = contents(tmp_path / "in"), outputs(out)
    left, real_put = [calls], put

    def failing(*args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error
        real_put(*args)

    kind = FormatError if isinstance(error, OSError) else KeyboardInterrupt
    with (
        patch.object(source, "PIECE", 256),
        patch.object(target, "put", failing),
        pytest.raises(kind) as raised,
    ):
        prune_checkpoint(index, RECIPE, out)
    if kind is FormatError:
        assert "No space left on device; 1,5" in str(raised.value)
    assert (contents(tmp_path / "in"), outputs(out)) == before
    assert names(tmp_path) == ["in", *["out"] * there]


@pytest.mark.parametrize("calls", range(9))
def test_an_error_while_moving_puts_earlier_files_back(tmp_path: Path, calls: int):
    index, out = sharded(tmp_path / "in"), tmp_path / "out"
    prune_checkpoint(index, RECIPE, out)
    for path in out.iterdir():
        path.write_bytes(path.name.encode())
    (out / "a folder").mkdir()  # so that the two cannot be exchanged
    before, left, replace = contents_of_files(out), [calls], os.replace

    def failing(*args: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        replace(*args)

    with patch("os.replace", failing):
        if calls < 8:  # four earlier files are put aside, four new ones moved in
            with pytest.raises(KeyboardInterrupt):
                prune_checkpoint(index, RECIPE, out)
            assert contents_of_files(out) == before
        else:
            prune_checkpoint(index, RECIPE, out)
            assert contents_of_files(out) != before
    assert names(tmp_path) == ["in", "out"]


@posix
def test_a_folder_of_an_earlier_result_is_replaced_in_one_step(tmp_path: Path):
    index, out, seen = sharded(tmp_path / "in"), tmp_path / "out", list[bool]()
    prune_checkpoint(index, RECIPE, out)
    (out / "config.json").write_text("{}")
    before = contents(out)

    def noting(a: Path, b: Path) -> bool:
        seen.append(contents(out) == before)
        done = swap(a, b)
        seen.append(contents(out) == before)
        return done

    other = {"rule": [{**RECIPE["rule"][0], "amount": 0.75}]}
    with patch("fxprune.support.writing.swap", noting), patch("os.replace", None):
        prune_checkpoint(index, other, out)
    assert seen == [True, False]
    assert names(out) == ["config.json", *(f"model-{at}.safetensors" for at in range(3)), INDEX]
    assert names(tmp_path) == ["in", "out"]


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path: Path):
    source = one(tmp_path)

    def touch(*_: Any) -> None:
        os.utime(source, ns=(1, 1))

    with pytest.raises(FormatError, match="was changed while it was read"):
        prune_checkpoint(source, RECIPE, tmp_path / "out.safetensors", on_progress=touch)
    assert names(tmp_path) == [source.name]


def test_a_source_that_becomes_shorter_is_an_error(tmp_path: Path):
    source = one(tmp_path)

    def cut(*_: Any) -> None:
        os.truncate(source, 60)

    with pytest.raises(FormatError, match="became shorter"):
        prune_checkpoint(source, RECIPE, tmp_path / "out.safetensors", on_progress=cut)


RUN = """
import sys, fxprune.checkpoint as c
c.prune_checkpoint(sys.argv[1], {recipe}, sys.argv[2], on_progress=lambda *x: print(*x, flush=True))
"""


@posix
@pytest.mark.thorough
@pytest.mark.parametrize("form", ["file", "new folder", "old folder"])
def test_killed_at_any_moment_it_leaves_no_half_and_run_again_does_the_whole(
    tmp_path: Path, form: str
):
    source = sharded(tmp_path / "in", 1 if form == "file" else 3, 18_000_000)
    out, wanted = tmp_path / "out", tmp_path / "wanted"
    if form == "file":
        source = source.parent / "model-0.safetensors"
        out, wanted = tmp_path / "out.safetensors", tmp_path / "wanted.safetensors"
    prune_checkpoint(source, RECIPE, wanted)
    if form == "old folder":
        shutil.copytree(wanted, out)
    before = contents(tmp_path / "in")
    for signal_, after in ((signal.SIGKILL, 2), (signal.SIGINT, 9), (signal.SIGKILL, 14)):
        killed(source, out, signal_, after)
        assert contents(tmp_path / "in") == before
        if form == "old folder":
            assert contents_of_files(out) == contents(wanted)
        else:
            assert not out.exists()
    prune_checkpoint(source, RECIPE, out)
    found, right = (
        (out.read_bytes(), wanted.read_bytes())
        if form == "file"
        else (contents(out), contents(wanted))
    )
    assert found == right
    assert names(tmp_path) == sorted(["in", out.name, wanted.name])


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def killed(source: Path, out: Path, number: int, after: int) -> None:
    """Run in another process and send it a signal when it has told of its progress so often."""
    code = RUN.format(recipe=RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", code, source, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Background jobs of a shell ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1])},
    )
    with process:
        stdout: Any = process.stdout
        for _ in range(after):
            assert stdout.readline()
        process.send_signal(number)
        stdout.read()
    assert process.returncode != 0


@posix
def test_leftovers_that_another_run_is_using_stay(tmp_path: Path):
    source, out = one(tmp_path), tmp_path / "out.safetensors"
    seen: list[list[str]] = []

    def nested(step: str, done: int, total: int) -> None:
        if not seen:
            seen.append([])
            prune_checkpoint(
                source, RECIPE, out, on_progress=lambda *_: seen.append(names(tmp_path))
            )

    prune_checkpoint(source, RECIPE, out, on_progress=nested)
    assert len(seen[1]) == 3, "the temporary folders of both runs, and the source"
    assert load_file(out)["t"].tolist() == [0, 0, 2, 3]
    assert names(tmp_path) == [source.name, out.name]
