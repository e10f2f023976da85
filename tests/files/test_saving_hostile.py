"""Hostile .fxp files: each is refused by name and place, quickly, and nothing in it runs."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FormatError
from fxprune.files.fxp import load, save
from fxprune.files.fxp_graph import function_of, has_method
from tests.tools.capture_helpers import masked, net

Header = dict[str, Any]
Document = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of a masked Program with batch norm, a keyword argument and a constant."""

    def forward(self: Any, x: Tensor, *, scale: Any = None) -> Any:
        y = torch.relu(self.norm(self.fc(x)))
        return {"y": y, "parts": list(torch.split(y, [1, 2], 1))}

    module = net(forward, fc=nn.Linear(4, 3), norm=nn.BatchNorm1d(3))
    program = masked(fxprune.capture(module, (torch.randn(3, 4),)))
    path = save(program, tmp_path_factory.mktemp("good") / "net.fxp")
    return path.read_bytes()


def taken_apart(raw: bytes) -> tuple[Header, Document, bytes]:
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    document = json.loads(header.pop("__metadata__")["fxprune"])
    return header, document, raw[8 + size :]


def put_together(header: Header, document: Document | str, data: bytes) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document)
    head = json.dumps({"__metadata__": {"fxprune": text}, **header}).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def edited(raw: bytes, change: Callable[[Document], None]) -> bytes:
    header, document, data = taken_apart(raw)
    change(document)
    return put_together(header, document, data)


def check_refused(raw: bytes, folder: Path) -> str:
    """The message of the refusal, which names the file first and is one printable line."""
    path = folder / "hostile.fxp"
    path.write_bytes(raw)
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        load(path)
    assert time.perf_counter() - start < 10
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 3000
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def test_the_good_file_loads(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.fxp"
    path.write_bytes(edited(good, lambda document: None))
    assert list(load(path).masks) == ["fc.weight"]


# The file


def test_every_truncation_is_refused(good: bytes, tmp_path: Path) -> None:
    ends = {0, 1, 7, 8, 9, len(good) - 1, *range(10, len(good), len(good) // 40)}
    for end in sorted(ends):
        check_refused(good[:end], tmp_path)


@pytest.mark.parametrize("claim", [2**63, 2**64 - 1, 2**40, 10**9])
def test_a_header_that_claims_terabytes_is_refused(claim: int, good: bytes, tmp_path: Path) -> None:
    found = check_refused(struct.pack("<Q", claim) + good[8:], tmp_path)
    assert "shorter than its header says" in found


def test_a_header_that_is_really_huge_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.fxp"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**33))
        file.truncate(2**33 + 8)  # takes no room on the disk
    with pytest.raises(FormatError, match="the header has 8,589,934,592 bytes, more than"):
        load(path)


@pytest.mark.parametrize("raw", [b"", b"{}", b"PK\x03\x04" * 9, b"\x80\x04." * 20, bytes(4096)])
def test_other_kinds_of_files_are_refused(raw: bytes, tmp_path: Path) -> None:
    check_refused(raw, tmp_path)


def test_a_pickle_in_a_fxp_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Evil()}, tmp_path / "pickle.pt")
    check_refused((tmp_path / "pickle.pt").read_bytes(), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_without_a_program_are_told_apart(good: bytes, tmp_path: Path) -> None:
    header, _, data = taken_apart(good)
    head = json.dumps(header).encode()
    found = check_refused(struct.pack("<Q", len(head)) + head + data, tmp_path)
    assert "holds no Program" in found


def test_places_that_are_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        load(tmp_path / "missing.fxp")
    with pytest.raises(FormatError, match="is not a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.fxp")
    with pytest.raises(FormatError, match="is not a file"):
        load(tmp_path / "pipe.fxp")


# The JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"version": ' + "9" * 5000 + "}", "not JSON"),
        ('{"version": NaN}', "the number NaN"),
        ('{"version": 1, "version": 1}', "the key 'version' twice"),
        ('{"version": 2}', "reads version 1 of the format, and the file says '2'"),
        ('{"version": "\\u001b[2J"}', "version"),
        ("[]", "version"),
        ("1", "version"),
        ('{"version": 1}', "inputs: Field required"),
        ('{"version": true}', "True"),
    ],
    ids=range(13),
)
def test_what_is_no_document_is_refused(
    text: str, message: str, good: bytes, tmp_path: Path
) -> None:
    header, _, data = taken_apart(good)
    assert message in check_refused(put_together(header, text, data), tmp_path)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


def _put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    if value is _GONE:
        del document[path[-1]]
    else:
        document[path[-1]] = value


_GONE = object()
WRONG = [_GONE, None, True, -1, 10**30, 1.5, "", "x", "__class__", "a.b", [], {}, [[]], {"a": 1}]


@pytest.mark.thorough
def test_any_place_with_any_wrong_value_is_refused_or_harmless(good: bytes, tmp_path: Path) -> None:
    """Replaces a part anywhere in the document; what still loads must be a Program that saves."""
    header, document, data = taken_apart(good)
    places = [place for place in _places(document) if place and place[0] != "traces"]
    chosen = random.Random(0).sample([(p, w) for p in places for w in WRONG], 1500)
    refused = 0
    for place, wrong in chosen:
        changed = copy.deepcopy(document)
        _put(changed, place, wrong)
        path = tmp_path / "hostile.fxp"
        path.write_bytes(put_together(header, changed, data))
        refused += _refuses(path, tmp_path / "again.fxp")
    assert refused > 1200


def _refuses(path: Path, other: Path) -> bool:
    """Whether a file is refused, by its name; if not, what it holds can be saved."""
    try:
        program = load(path)
    except FormatError as error:
        told = str(error)
    else:
        save(program, other)
        return False
    assert told.startswith(f"{path}: ")
    return True


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_refused_or_harmless(seed: int, good: bytes, tmp_path: Path) -> None:
    drawn = random.Random(seed)
    header_end = 8 + struct.unpack("<Q", good[:8])[0]
    path = tmp_path / "hostile.fxp"
    for _ in range(100):
        raw = bytearray(good)
        for _ in range(drawn.randint(1, 4)):
            raw[drawn.randrange(header_end)] = drawn.randrange(256)
        path.write_bytes(raw)
        _refuses(path, tmp_path / "again.fxp")


# Code


INJECTION = 'x"), __import__("os").mkdir("ran"), ("'


def node_of(document: Document, op: str, at: int = 0) -> dict[str, Any]:
    return [node for node in document["graphs"]["both"]["nodes"] if node["op"] == op][at]


def rename(document: Any, old: str, new: str) -> Any:
    """Rename a node, a module or a tensor wherever the document names it."""
    if isinstance(document, dict):
        return {_renamed(key, old, new): rename(part, old, new) for key, part in document.items()}
    if isinstance(document, list):
        return [rename(part, old, new) for part in document]
    return _renamed(document, old, new)


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str) and (value == old or value.startswith(f"{old}.")):
        return new + value[len(old) :]
    return value


NAMES = [
    *(INJECTION, "x; import os", "x\nimport os", "a b", "a-b", "1a", "", "self", "class", "None"),
    *("__class__", "__builtins__", "é", "x=1", "*args", "(x)", "x, y", "a" * 20_000),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", ["placeholder", "get_attr", "call_function"])
def test_names_of_nodes_that_are_no_names_are_refused(
    op: str, name: str, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    header, document, data = taken_apart(good)
    old = node_of(document, op)["name"]
    document["graphs"] = rename(document["graphs"], old, name)
    check_refused(put_together(header, document, data), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_of_arguments_that_are_no_names_are_refused(
    name: str, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "é":
        pytest.skip("Python takes such an argument")
    for part in ("graphs", "inputs"):
        header, document, data = taken_apart(good)
        if part == "graphs":
            node_of(document, "placeholder")["target"] = name
        else:
            document["inputs"] = rename(document["inputs"], "x", name)
        check_refused(put_together(header, document, data), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [INJECTION, "x\nimport os", "", "__class__", "forward", "training", "a.b", "'", "{x}"]
)
@pytest.mark.parametrize("old", ["fc", "norm"])
def test_names_of_modules_that_hide_or_run_something_are_refused(
    old: str, name: str, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    header, document, data = taken_apart(good)
    check_refused(
        put_together(rename(header, old, name), rename(document, old, name), data), tmp_path
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["graph", "captured", "_run", "device", "code", "recompile"])
def test_names_that_a_program_needs_are_refused(name: str, good: bytes, tmp_path: Path) -> None:
    header, document, data = taken_apart(good)
    found = check_refused(
        put_together(rename(header, "fc", name), rename(document, "fc", name), data), tmp_path
    )
    assert "reserved by nn.Module" in found or "needs itself" in found


TARGETS = [
    *("os.system", "builtins.eval", "eval", "builtins.getattr", "operator.attrgetter"),
    *("operator.methodcaller", "torch.load", "torch.save", "torch.hub.load", "torch.compile"),
    *("torch.ops.load_library", "torch.Tensor.apply_", "torch.Tensor.__reduce_ex__"),
    *("aten.save.default", "aten.from_file.default", "aten.set_.source_Tensor"),
    *("aten.warn.default", "aten.nothing.default", "aten.relu.nothing", "aten.relu"),
    *("aten._foobar.default", "aten.__class__.default", "aten.relu.__class__"),
    *("aten._sparse_coo_tensor_unsafe.default", "prims.add.default", "higher_order.cond"),
    *("fxprune_tests.twice.default", "aten.relu.default\nimport os", "", "torch", "aten"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_functions_that_are_not_listed_are_refused(
    target: str, good: bytes, tmp_path: Path
) -> None:
    def change(document: Document) -> None:
        node_of(document, "call_function")["target"] = target

    found = check_refused(edited(good, change), tmp_path)
    assert "graphs.both" in found


@pytest.mark.parametrize("name", ["eval", "aten.from_file.default", "torch.load"])
def test_no_function_that_touches_files_has_a_name(name: str) -> None:
    with pytest.raises(FormatError, match="not among"):
        function_of(name)


@pytest.mark.parametrize(
    "name",
    ["__class__", "apply_", "register_hook", "data_ptr", "numpy", "storage", "set_", "view.x"],
)
def test_methods_that_do_more_than_compute_have_no_name(name: str) -> None:
    assert has_method("view")
    assert not has_method(name)


@pytest.mark.parametrize(
    "target",
    [
        *("__class__", "fc.__class__", "fc.__dict__", "fc.weight.data", "forward", "fc.forward"),
        *("nothing", "fc.nothing", "nothing.weight", "fc", "", ".", "fc..weight_orig", "graph"),
        *("fc.device", "captured", INJECTION, "fc.weight"),
    ],
)
def test_a_graph_reads_nothing_but_tensors_and_flags(
    target: str, good: bytes, tmp_path: Path
) -> None:
    def change(document: Document) -> None:
        node_of(document, "get_attr")["target"] = target

    check_refused(edited(good, change), tmp_path)


@pytest.mark.parametrize("name", [*NAMES, "out", "alpha"])
def test_keyword_arguments_are_those_of_the_operator(
    name: str, good: bytes, tmp_path: Path
) -> None:
    def change(document: Document) -> None:
        node_of(document, "call_function")["kwargs"] = {name: 1}

    check_refused(edited(good, change), tmp_path)


# Graphs


def _nodes(document: Document) -> list[dict[str, Any]]:
    return document["graphs"]["both"]["nodes"]


def _cycle(document: Document) -> None:
    calls = [node for node in _nodes(document) if node["op"] == "call_function"]
    calls[0]["args"][0] = calls[-1]["name"]


def _itself(document: Document) -> None:
    node = node_of(document, "call_function")
    node["args"][0] = node["name"]


def _twice(document: Document) -> None:
    _nodes(document).insert(0, dict(_nodes(document)[0]))


def _without_output(document: Document) -> None:
    _nodes(document).pop()


def _two_outputs(document: Document) -> None:
    _nodes(document).append(dict(_nodes(document)[-1], name="more"))


def _early_output(document: Document) -> None:
    _nodes(document).insert(0, _nodes(document).pop())


def _bare_output(document: Document) -> None:
    _nodes(document)[-1]["args"] = [_nodes(document)[-2]["name"]]


def _fewer_outputs(document: Document) -> None:
    _nodes(document)[-1]["args"][0]["tuple"].pop()


def _deep_argument(document: Document) -> None:
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    node_of(document, "call_function")["args"][0] = deep


def _no_arguments(document: Document) -> None:
    node_of(document, "call_function")["args"] = []


def _text_for_a_tensor(document: Document) -> None:
    node_of(document, "call_function")["args"][0] = {"str": "x"}


def _other_shape(document: Document) -> None:
    node_of(document, "get_attr").update(shape=[7, 7], dtype="float32")


def _past_the_mask(document: Document) -> None:
    product = next(n for n in _nodes(document) if n["target"] == "aten.mul.Tensor")
    user = next(n for n in _nodes(document) if product["name"] in n.get("args", []))
    user["args"] = [product["args"][0] if a == product["name"] else a for a in user["args"]]


def _unknown_trace(document: Document) -> None:
    node_of(document, "call_function")["trace"] = 10_000


def _no_graph(document: Document) -> None:
    document["graphs"] = {}


def _half_a_pair(document: Document) -> None:
    document["graphs"] = {"train": document["graphs"]["both"]}


def _no_decider(document: Document) -> None:
    graph = document["graphs"]["both"]
    document["graphs"] = {"train": graph, "eval": graph}


GRAPHS: dict[Callable[[Document], None], str] = {
    _cycle: "there is no node",
    _itself: "there is no node",
    _twice: "stands twice",
    _without_output: "no output",
    _two_outputs: "after the output",
    _early_output: "there is no node",
    _bare_output: "an output has one tuple",
    _fewer_outputs: "3 outputs",
    _deep_argument: "nested deeper",
    _no_arguments: "is not given its argument",
    _text_for_a_tensor: "is a Tensor",
    _other_shape: "another shape",
    _past_the_mask: "past its mask",
    _unknown_trace: "no stack trace",
    _no_graph: "there must be one for both modes",
    _half_a_pair: "there must be one for both modes",
    _no_decider: "some training flag must choose",
}


@pytest.mark.parametrize("change", GRAPHS, ids=lambda change: change.__name__.strip("_"))
def test_graphs_that_are_not_well_formed_are_refused(
    change: Callable[[Document], None], good: bytes, tmp_path: Path
) -> None:
    assert GRAPHS[change] in check_refused(edited(good, change), tmp_path)


# Tensors and trees


def _terabytes(document: Document) -> None:
    document["tensors"][0]["shape"] = [2**40, 2**20]


def _other_dtype(document: Document) -> None:
    document["tensors"][0]["dtype"] = "float64"


def _transposed(document: Document) -> None:
    shape = next(t["shape"] for t in document["tensors"] if len(t["shape"]) == 2)
    shape.reverse()


def _far_away(document: Document) -> None:
    document["tensors"][0] |= {"stride": [2**40, 1], "offset": 2**40}


def _expanded(document: Document) -> None:
    vector = next(t for t in document["tensors"] if len(t["shape"]) == 1)
    vector |= {"shape": [2**40, 3], "stride": [0, 1], "offset": 0}


def _strided(document: Document) -> None:
    matrix = next(t for t in document["tensors"] if len(t["shape"]) == 2)
    matrix["stride"] = [2**50, 2**50]


def _overlapping(document: Document) -> None:
    matrix = next(t for t in document["tensors"] if len(t["shape"]) == 2)
    matrix["stride"] = [0, 0]


def _no_such_data(document: Document) -> None:
    document["tensors"][0]["data"] = "nothing"


def _left_over(document: Document) -> None:
    document["tensors"].append(dict(document["tensors"][0]))


def _gradient_of_a_count(document: Document) -> None:
    next(t for t in document["tensors"] if t["dtype"] == "int64")["grad"] = True


def _buffer_as_parameter(document: Document) -> None:
    parameters = next(m for m in document["modules"] if m.get("parameters"))["parameters"]
    number = next(i for i, t in enumerate(document["tensors"]) if not t.get("parameter"))
    parameters[next(iter(parameters))] = number


def _own_child(document: Document) -> None:
    document["modules"][-1]["children"]["fc"] = len(document["modules"]) - 1


def _bomb(document: Document) -> None:
    """Sixty modules, each twice in the next: 2**60 paths."""
    root = document["modules"].pop()
    start = len(document["modules"])
    document["modules"].append({"kind": "Leaf", "training": True})
    for at in range(60):
        children = {"a": start + at, "b": start + at}
        document["modules"].append({"kind": "Twice", "training": True, "children": children})
    root["children"]["bomb"] = len(document["modules"]) - 1
    document["modules"].append(root)


def _tower(document: Document) -> None:
    root = document["modules"].pop()
    start = len(document["modules"])
    document["modules"].append({"kind": "Leaf", "training": True})
    for at in range(5000):
        module = {"kind": "One", "training": True, "children": {"a": start + at}}
        document["modules"].append(module)
    root["children"]["tower"] = len(document["modules"]) - 1
    document["modules"].append(root)


def _no_module(document: Document) -> None:
    document["modules"] = []


def _lone_module(document: Document) -> None:
    document["modules"].insert(0, {"kind": "Lone", "training": True})


def _unknown_first(document: Document) -> None:
    document["first"]["fc.nothing"] = "fc.nothing"


def _missing_first(document: Document) -> None:
    del document["first"]["fc.bias"]


def _false_alias(document: Document) -> None:
    document["first"]["fc.bias"] = "norm.bias"


def _unknown_decider(document: Document) -> None:
    document["deciders"] = ["nothing"]


def _unknown_flag(document: Document) -> None:
    document["frozen"]["train"]["nothing"] = True


def _small_mask(document: Document) -> None:
    module = next(m for m in document["modules"] if "weight_mask" in m.get("buffers", {}))
    module["buffers"]["weight_mask"] = module["parameters"]["bias"]


TREES: dict[Callable[[Document], None], str] = {
    _terabytes: "the document says",
    _other_dtype: "the document says float64",
    _transposed: "the document says (4, 3), the data is (3, 4)",
    _far_away: "tensors.0.offset: Extra inputs are not permitted",
    _expanded: "offset: Extra inputs are not permitted",
    _strided: "do not fit the shape",
    _overlapping: "do not fit the shape",
    _no_such_data: "the document says nothing of it",
    _left_over: "nothing in the tree holds it",
    _gradient_of_a_count: "requires no gradient",
    _buffer_as_parameter: "is no parameter",
    _own_child: "there is no number",
    _bomb: "more than 1,000,000 names or 200 levels",
    _tower: "more than 1,000,000 names or 200 levels",
    _no_module: "there is no module",
    _lone_module: "nothing in the tree holds it",
    _unknown_first: "there is no parameter",
    _missing_first: "is missing",
    _false_alias: "is no other name",
    _unknown_decider: "there is no module",
    _unknown_flag: "there is no module",
    _small_mask: "",
}


@pytest.mark.parametrize("change", TREES, ids=lambda change: change.__name__.strip("_"))
def test_tensors_and_trees_that_do_not_fit_are_refused(
    change: Callable[[Document], None], good: bytes, tmp_path: Path
) -> None:
    assert TREES[change] in check_refused(edited(good, change), tmp_path)


def test_data_that_the_document_does_not_know_is_refused(good: bytes, tmp_path: Path) -> None:
    header, document, data = taken_apart(good)
    size = max(entry["data_offsets"][1] for entry in header.values())
    header["more"] = {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]}
    found = check_refused(put_together(header, document, data + bytes(8)), tmp_path)
    assert "'more': the document says nothing of it" in found


# Arguments and classes


INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "an absurd shape": ({"shape": [2**40]}, "absurd"),
    "code for a size": ({"shape": ["batch); import os"]}, "no symbolic size"),
    "an empty range": ({"low": 3, "high": 1}, "the range 3..1"),
    "half a range": ({"low": 3}, "the range 3..None"),
    "an endless range": ({"low": 0, "high": 2**70}, "the range"),
    "an unknown dtype": ({"dtype": "float31"}, "no dtype"),
    "two kinds": ({"constant": 1}, "a tensor and a constant"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_none_are_refused(case: str, good: bytes, tmp_path: Path) -> None:
    change, message = INPUTS[case]
    raw = edited(good, lambda document: document["inputs"]["inputs"][0].update(change))
    assert message in check_refused(raw, tmp_path)


NESTINGS: dict[str, tuple[Any, str]] = {
    "no nesting": (1, "a nesting is"),
    "an unknown tag": ({"set": []}, "the tag 'set'"),
    "another class": ({"class": ["os.PathLike", None, []]}, "not registered"),
    "a class of torch's own": (
        {"class": ["torch._higher_order_ops.flat_apply._ConstantFunction", None, []]},
        "not registered",
    ),
    "a module to import": ({"class": ["antigravity.X", None, []]}, "not registered"),
    "a wrong context": (
        {"class": ["collections.defaultdict", [{"str": "os.system"}], []]},
        "cannot be made",
    ),
    "a field that is code": ({"namedtuple": ["a.B", ["x=1"], ["*"]]}, "namedtuple 'a.B'"),
    "a kind that is code": ({"namedtuple": ["a.B(x)", ["x"], ["*"]]}, "namedtuple"),
    "another number of fields": ({"namedtuple": ["a.B", ["x", "y"], ["*"]]}, "as many parts"),
    "one key twice": ({"dict": [[{"str": "a"}, "*"], [{"str": "a"}, "*"]]}, "one key twice"),
    "a key that is a list": ({"dict": [[[1], "*"]]}, "keys of a dict"),
    "a long deque": ({"deque": [2**62, ["*"]]}, "length of a deque"),
    "a short deque": ({"deque": [0, ["*"]]}, "length of a deque"),
    "another number of leaves": ({"tuple": ["*"] * 7}, "7 outputs"),
}


@pytest.mark.parametrize("case", NESTINGS)
def test_outputs_of_other_kinds_are_refused_and_nothing_is_imported(
    case: str, good: bytes, tmp_path: Path
) -> None:
    nesting, message = NESTINGS[case]

    def change(document: Document) -> None:
        document["graphs"]["both"]["outputs"] = nesting

    assert message in check_refused(edited(good, change), tmp_path)
    assert "antigravity" not in sys.modules


def test_a_nesting_that_is_very_deep_is_refused(good: bytes, tmp_path: Path) -> None:
    deep: Any = "*"
    for _ in range(100):
        deep = {"tuple": [deep]}
    raw = edited(good, lambda document: document["inputs"].update(nesting=deep))
    assert "nested deeper" in check_refused(raw, tmp_path)


# Memory


@pytest.mark.thorough
def test_a_large_hostile_document_takes_bounded_memory(good: bytes, tmp_path: Path) -> None:
    """The largest document that is read at all, of what takes most room: empty lists."""
    header, _, data = taken_apart(good)
    text = '{"version":1,"notes":[' + "[]," * (10 * 2**20) + "[]]}"
    path = tmp_path / "large.fxp"
    path.write_bytes(put_together(header, text, data))
    code = (
        "import resource, sys\n"
        "from fxprune.errors import FormatError\n"
        "from fxprune import load\n"
        "try:\n    load(sys.argv[1])\nexcept FormatError as error:\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    sys.stdout.write(f'{peak} {len(str(error))}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    peak, length = map(int, result.stdout.split())
    assert peak < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 3 * 2**20  # KiB
    assert length < 3000


# What is kept of rules and shrinks

RULE, MAP = ("records", 0), ("shrinks", 0, "maps", 0)
RECORDS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "an unknown key": ((*RULE, "other"), 1, "records.0.other"),
    "a negative count": ((*RULE, "parameters", 0, "pruned"), -1, "parameters.0.pruned"),
    "a text for a count": ((*RULE, "edits"), "3", "records.0.edits"),
    "an odd threshold": ((*RULE, "layers", 0, "threshold"), "much", "layers.0.threshold"),
    "a flag for a threshold": ((*RULE, "layers", 0, "threshold"), True, "layers.0.threshold"),
    "a reason alone": ((*RULE, "refused"), [["why"]], "records.0.refused"),
    "channels in disorder": ((*MAP, "kept"), [1, 0], "are in disorder"),
    "a channel that was not there": ((*MAP, "kept"), [10**6], "are in disorder"),
    "a map of nothing": ((*MAP, "tensor"), None, "maps.0.tensor"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_damaged_records_are_refused(case: str, tmp_path: Path) -> None:
    path, value, told = RECORDS[case]

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    raw = (Path(__file__).parent.parent / "data" / "shrunk.fxp").read_bytes()
    assert told in check_refused(edited(raw, change), tmp_path)
