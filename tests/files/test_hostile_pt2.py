"""Hostile .pt2 files: what torch.export.load would run is refused by name, and does not run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli.app import app
from fxprune.errors import FormatError
from fxprune.files.pt2 import check_expression, load_pt2
from fxprune.testing.comparing import is_same
from tests.models.zoo import ZOO

Members = dict[str, bytes]
GRAPH = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def code_for(canary: Path) -> str:
    return f"__import__('os').mkdir({str(canary)!r})"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
    program = fxprune.capture(model, (torch.randn(3, 4),))
    path = fxprune.export(program, tmp_path_factory.mktemp("good") / "net.pt2")
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def written(members: Members, path: Path, packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, raw in members.items():
            archive.writestr(f"net/{name}", raw)
    return path


def with_graph(members: Members, change: Callable[[dict[str, Any]], Any]) -> Members:
    data = json.loads(members[GRAPH])
    change(data)
    return {**members, GRAPH: json.dumps(data).encode()}


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def check_refused(members: Members, folder: Path) -> str:
    path = written(members, folder / "hostile.pt2")
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        load_pt2(path)
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["lenet", "aux_head", "buffers", "kwargs_dict", "lstm"])
def test_good_files_give_the_outputs_of_the_program(name: str, tmp_path: Path) -> None:
    model, args, kwargs = ZOO[name]()
    program = fxprune.capture(model, args, kwargs).eval()
    loaded = load_pt2(fxprune.export(program, tmp_path / "net.pt2"))
    again = fxprune.capture(loaded)
    torch.manual_seed(0)
    wanted = program(*args, **kwargs)
    torch.manual_seed(0)
    assert is_same(again(*args, **kwargs), wanted)


# Pickles


def test_a_cast_that_export_guards_is_read(tmp_path: Path) -> None:
    class Cast(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.float64).cumsum(1).to(x.dtype)

    x = torch.randn(3, 4)
    path = fxprune.export(fxprune.capture(Cast(), (x,)), tmp_path / "net.pt2")
    assert torch.equal(load_pt2(path).module()(x), Cast()(x))


def test_a_mask_of_infinities_is_read(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            filled = x.masked_fill(x < 0, float("-inf"))
            return torch.softmax(filled, -1), x.new_full((2,), float("nan")), filled.clamp(max=1e9)

    x = torch.randn(3, 4)
    path = fxprune.export(fxprune.capture(Masked(), (x,)), tmp_path / "net.pt2")
    assert is_same(load_pt2(path).module()(x), Masked()(x))


def test_torch_itself_runs_what_is_refused_here(good: Members, tmp_path: Path) -> None:
    """If this fails, torch has become safe, and the scan of sample inputs less needed."""
    path = written({**good, SAMPLES: pickled(((Evil(tmp_path / "ran"),), {}))}, tmp_path / "a.pt2")
    code = "import sys, torch\ntorch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["samples", "weights", "constants"])
def test_no_pickle_is_run(place: str, legacy: bool, good: Members, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    evil = pickle.dumps(Evil(canary)) if legacy else pickled(Evil(canary))
    entry = {"use_pickle": True, "is_param": False, "tensor_meta": None}
    if place == "samples":
        members = {**good, SAMPLES: evil}
    elif place == "weights":
        data = json.loads(good[WEIGHTS])
        data["config"]["0.weight"].update(entry)
        members = {**good, WEIGHTS: json.dumps(data).encode(), "data/weights/weight_0": evil}
    else:
        data = {"config": {"c": {**entry, "path_name": "tensor_0"}}}
        members = {**good, CONSTANTS: json.dumps(data).encode(), "data/constants/tensor_0": evil}
    assert "nothing in it was run" in check_refused(members, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("prefix", ["custom_obj_", "opaque_obj_", "../weights/weight_", "x"])
def test_objects_that_are_no_tensors_are_refused(
    prefix: str, good: Members, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    data = {"config": {"c": {"path_name": f"{prefix}0", "use_pickle": True}}}
    members = {**good, CONSTANTS: json.dumps(data).encode()}
    members[f"data/constants/{prefix.replace('../', '')}0"] = pickle.dumps(Evil(canary))
    assert "is no tensor, and torch would unpickle it" in check_refused(members, tmp_path)
    assert not canary.exists()


def test_older_and_other_members_are_not_read(good: Members, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    evil = pickled(Evil(canary))
    extra = dict.fromkeys(
        (
            *("data/weights/model.pt", "data/constants/model.pt", "data/aotinductor/model/x.so"),
            *("extra/x", "data/sample_inputs/other.pt", "serialized_state_dict.pt", "version"),
        ),
        evil,
    )
    loaded = load_pt2(written({**good, **extra}, tmp_path / "a.pt2"))
    assert len(loaded.state_dict) == 7
    assert not canary.exists()
    assert "does not hold one graph" in check_refused(
        {**good, "models/b.json": good[GRAPH]}, tmp_path
    )


# Code in the JSON


def _every(value: Any, key: str, text: Any) -> int:
    """Replace each value of a key, wherever it stands; return how many there were."""
    count = 0
    if isinstance(value, dict):
        for name in list(value):
            if name == key:
                value[name] = text
                count += 1
            else:
                count += _every(value[name], key, text)
    elif isinstance(value, list):
        count += sum(_every(item, key, text) for item in value)
    return count


@pytest.mark.parametrize("key", ["expr_str", "name", "parameter_name", "in_spec", "target"])
def test_no_code_in_texts_is_run(key: str, good: Members, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    for text in (
        code_for(canary),
        f"x={code_for(canary)}",
        f'a")+{code_for(canary)}#',
        f"a\n    {code_for(canary)}",
        f"Symbol({code_for(canary)})",
    ):
        members = with_graph(good, lambda data, text=text: _every(data, key, text))
        assert check_refused(members, tmp_path).startswith(f"{GRAPH}: ")
        assert not canary.exists()


def test_guards_and_notes_are_not_run(good: Members, tmp_path: Path) -> None:
    canary = tmp_path / "ran"

    def change(data: dict[str, Any]) -> None:
        data["guards_code"] = [code_for(canary)]
        data["graph_module"]["metadata"] = {"custom": code_for(canary)}
        for node in data["graph_module"]["graph"]["nodes"]:
            node["metadata"]["from_node"] = node["metadata"]["source_fn_stack"] = code_for(canary)
            node["metadata"]["stack_trace"] = f"\n{code_for(canary)}"

    loaded = load_pt2(written(with_graph(good, change), tmp_path / "a.pt2"))
    loaded.module()(torch.randn(3, 4))
    fxprune.capture(loaded)(torch.randn(3, 4))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        (
            "collections.defaultdict",
            json.dumps(
                {
                    "default_factory_module": "evil_module",
                    "default_factory_name": "x",
                    "dict_context": [],
                }
            ),
        ),
        ("builtins.dict", '[{"__enum__": true, "fqn": "evil_module:X", "name": "a"}]'),
        ("no.such.type", "null"),
        ({}, "null"),
        ("builtins.tuple", 3),
    ],
)
def test_nothing_is_imported_for_a_nesting(
    kind: Any, context: Any, good: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])
    members = with_graph(good, lambda data: _every(data, "out_spec", spec))
    assert "out_spec: " in check_refused(members, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        *(
            "torch.load",
            "torch.hub.load",
            "torch.ops.load_library",
            "torch.serialization.os.system",
        ),
        *("math.os", "_operator.methodcaller", "#ext:x", "builtins.eval", "torch.ops.aten.save"),
        *("torch.ops.aten._print.default", "torch.ops.aten.from_file.default", "torch.compile"),
        "torch.ops.higher_order.wrap",
    ],
)
def test_only_operators_that_compute_are_called(target: str, good: Members, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["graph_module"]["graph"]["nodes"][0]["target"] = target

    assert "target: " in check_refused(with_graph(good, change), tmp_path)
    argument = {"as_operator": target}

    def pass_on(data: dict[str, Any]) -> None:
        data["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = argument

    assert "it has a as_operator" in check_refused(with_graph(good, pass_on), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("Pow(Integer(9), Integer(999999999))", "Pow(Pow(Integer(9), Integer(8)), Integer(8))"),
        *("9**9**9", "Integer(9)**2", f"Integer({'9' * 30})", "Integer(1e400)", "s0.__class__"),
        *("Symbol('s0', cls=eval)", "Symbol('os')", "Symbol(*[1])", "Add(*[1])", "(lambda: 1)()"),
        *("", "Add(" * 40 + "1" + ")" * 40, "Add(" * 5000, "[1]", "'s0'", "s0 if s1 else s2"),
        *("LShift(Integer(1), Integer(99999999))", "a" * 3000, "\0", "Mul('x')", "eval('1')"),
    ],
)
def test_expressions_that_torch_does_not_write_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="is no symbolic size"):
        check_expression(text)


def test_expressions_that_torch_writes_are_let_through() -> None:
    check_expression(
        "Mul(Integer(-2), Pow(Symbol('s77', positive=True, integer=True), Integer(2)))"
    )
    check_expression("Equality(Mod(s0, Integer(2)), Integer(0))")


# Sizes


def test_sizes_that_are_claimed_are_not_believed(good: Members, tmp_path: Path) -> None:
    def sized(sizes: list[Any], raw: bytes) -> Members:
        data = json.loads(good[WEIGHTS])
        data["config"]["0.weight"]["tensor_meta"]["sizes"] = sizes
        return {**good, WEIGHTS: json.dumps(data).encode(), "data/weights/weight_0": raw}

    huge = [{"as_int": 2**40}, {"as_int": 3}]
    for raw in (b"", bytes(48)):
        assert "has the shape" in check_refused(sized(huge, raw), tmp_path)
    for sizes in ([{"as_int": -1}], [{"as_int": True}], [{"as_expr": {}}], [{}]):
        assert "has the shape" in check_refused(sized(sizes, bytes(48)), tmp_path)
    symbol = {"u99999999999": {"min_val": 0, "max_val": None}}
    members = with_graph(good, lambda data: data.update(range_constraints=symbol))
    assert "is no symbol of a size" in check_refused(members, tmp_path)
    assert "2001 bits" in check_refused(
        with_graph(good, lambda data: _every(data, "as_int", 2**2000)), tmp_path
    )


def test_zip_bombs_are_refused(good: Members, tmp_path: Path) -> None:
    path = written({**good, "extra/x": bytes(10**7)}, tmp_path / "a.pt2", zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="is packed, which torch never does"):
        load_pt2(path)
    raw = bytearray(written({**good, "extra/x": b"1"}, tmp_path / "b.pt2").read_bytes())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="claim more bytes than the file has"):
        load_pt2(path)
    path.write_bytes(b"PK\x01\x02" * 100_001)
    with pytest.raises(FormatError, match="more than 100,000 members"):
        load_pt2(path)


def test_names_that_leave_the_folder_or_come_twice_are_refused(
    good: Members, tmp_path: Path
) -> None:
    for name in ("../x", "a//b", "./x", "x\x1b[2J", "x" * 5000):
        assert "is not a name, or is there twice" in check_refused({**good, name: b""}, tmp_path)
    path = written(good, tmp_path / "twice.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"net/{GRAPH}", b"{}")
    with pytest.raises(FormatError, match="is there twice"):
        load_pt2(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/x", b"")
    with pytest.raises(FormatError, match="not in one folder"):
        load_pt2(path)


@pytest.mark.parametrize("text", ["[" * 10**6, "{}", "[]", '{"a":1,"a":2}', "\ud800", "NaN"])
def test_json_that_is_no_graph_is_refused(text: str, good: Members, tmp_path: Path) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    for member in (GRAPH, WEIGHTS, CONSTANTS):
        assert check_refused({**good, member: raw}, tmp_path).startswith(f"{member}: ")


def test_damaged_files_and_other_places_are_refused(good: Members, tmp_path: Path) -> None:
    raw = written(good, tmp_path / "a.pt2").read_bytes()
    path = tmp_path / "hostile.pt2"
    for end in (0, 1, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            load_pt2(path)
    for name in good:
        if not name.startswith((".", "archive_format", "data/sample")) and "byteorder" not in name:
            check_refused({key: value for key, value in good.items() if key != name}, tmp_path)
    os.mkfifo(tmp_path / "pipe.pt2")
    for place in (tmp_path, tmp_path / "pipe.pt2", Path("/dev/zero"), tmp_path / "missing.pt2"):
        with pytest.raises(FormatError, match=r"is not a file|does not exist"):
            load_pt2(place)


# On the command line


def test_commands_take_a_pt2_and_refuse_a_hostile_one(good: Members, tmp_path: Path) -> None:
    path = written(good, tmp_path / "a.pt2")
    result = CliRunner().invoke(app, ["verify", str(path), "--against", str(path)])
    assert result.exit_code == 0, result.output
    canary = tmp_path / "ran"
    evil = written({**good, SAMPLES: pickled(Evil(canary))}, tmp_path / "b.pt2")
    for command in (["inspect", str(evil)], ["verify", str(evil), "--against", str(path)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "nothing in it was run" in result.output
    assert not canary.exists()
