"""Saved Programs: a file is the whole Program, bit for bit, and equal Programs are equal files."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.errors import FormatError, PassTypeError
from fxprune.files import fxp
from fxprune.files.fxp import load, save
from fxprune.files.fxp_document import SavedInput, SavedInputs
from fxprune.files.writers import export
from fxprune.program.calls import PATH, VALUE
from fxprune.program.captured import Captured
from fxprune.program.inputs import Input, InputSpec, UnshapedSpec
from fxprune.program.program import Program
from fxprune.testing.architecture import Arch, build
from fxprune.testing.drawing import architectures
from fxprune.testing.oracle import loss_of, step_by_step
from tests.files.test_source_code import imported
from tests.models.zoo import QUICK, ZOO
from tests.tools.batches import with_batch
from tests.tools.capture_helpers import captured, check_same, masked, net, run, state_of, written
from tests.tools.profiles import thorough_but

FORMS: dict[str, Callable[[Program], Program]] = {
    "dense": copy.deepcopy,
    "masked": masked,
    "finalized": lambda program: fxprune.finalize(masked(program)),
}

each_model = pytest.mark.parametrize("name", thorough_but(QUICK, ZOO))
each_form = pytest.mark.parametrize("form", FORMS)


def document(path: Path) -> dict[str, Any]:
    """The JSON in a file, read without fxprune."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["fxprune"])


def again(program: Program, folder: Path) -> Program:
    """Save, load and save; hold the two files to each other, and return what was loaded."""
    first, second = save(program, folder / "first.fxp"), folder / "second.fxp"
    loaded = load(first)
    save(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    return loaded


def check_runs(ours: nn.Module, theirs: nn.Module, args: Any, kwargs: Any) -> None:
    for train in (True, False):
        for batch in (4, 2, 7):
            given = with_batch(args, kwargs, batch)
            check_same(run(ours.train(train), *given), run(theirs.train(train), *given), train)


@each_model
@each_form
def test_a_file_gives_back_the_program_and_then_the_same_file(
    name: str, form: str, tmp_path: Path
) -> None:
    (_, args, kwargs), program = captured(name)
    program = FORMS[form](program)
    loaded = again(program, tmp_path)
    assert list(loaded.state_dict()) == list(program.state_dict())
    check_same(dict(loaded.state_dict()), dict(program.state_dict()))
    assert [n for n, _ in loaded.named_buffers()] == [n for n, _ in program.named_buffers()]
    assert loaded.captured.first == program.captured.first
    assert loaded.records == program.records
    assert list(loaded.masks) == list(program.masks)
    assert str(loaded) == str(program)
    check_runs(loaded, copy.deepcopy(program), args, kwargs)


@each_model
def test_a_loaded_program_trains_and_is_copied_as_the_saved_one(name: str, tmp_path: Path) -> None:
    (_, args, kwargs), program = captured(name)
    program = masked(program)
    loaded = load(save(program, tmp_path / "net.fxp"))
    forms = (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)))
    wanted = _trained(copy.deepcopy(program), args, kwargs)
    for form in forms:
        check_same(_trained(form, args, kwargs), wanted)


def _trained(program: Program, args: Any, kwargs: Any) -> Any:
    steps = step_by_step(
        program.train(), lambda: program(*args, **kwargs), loss=loss_of, steps=2, lr=0.1, seed=3
    )
    return steps, state_of(program)


def test_a_loaded_program_is_pruned_finalized_compiled_and_exported(tmp_path: Path) -> None:
    (model, args, _), program = captured("residual_cnn")
    path = save(program, tmp_path / "net.fxp")
    recipe = {
        "rule": [{"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}],
        "finalize": {},
        "export": {"formats": ["pt2", "safetensors"]},
    }
    wanted = fxprune.compile(model, recipe, args)
    found = fxprune.compile(load(path), recipe, out=tmp_path / "out")
    check_same(dict(found.program.state_dict()), dict(wanted.program.state_dict()))
    assert found.certificate
    assert (tmp_path / "out" / "model.pt2").exists()
    ours = torch.compile(load(path), fullgraph=True, backend="eager")
    check_same(run(ours, args), run(load(path), args))


def test_a_program_is_masked_further_after_a_load(tmp_path: Path) -> None:
    rule = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
    once = fxprune.prune(captured("lenet")[1], {"rule": [rule]})
    twice = fxprune.prune(once, {"rule": [rule]})
    found = fxprune.prune(load(save(once, tmp_path / "net.fxp")), {"rule": [rule]})
    check_same(dict(found.state_dict()), dict(twice.state_dict()))


def test_a_saved_program_is_in_the_mode_it_had(tmp_path: Path) -> None:
    program = captured("residual_cnn")[1]
    program = copy.deepcopy(program).train()
    program.get_submodule("block1").eval()
    loaded = load(save(program, tmp_path / "net.fxp"))
    flags = {name: module.training for name, module in loaded.named_modules()}
    assert flags == {name: module.training for name, module in program.named_modules()}


@each_model
def test_weights_of_a_loaded_and_finalized_program_load_strictly_into_the_source(
    name: str, tmp_path: Path
) -> None:
    (model, args, kwargs), program = captured(name)
    program = masked(program)
    final = fxprune.finalize(load(save(program, tmp_path / "net.fxp")))
    other, _, _ = ZOO[name](seed=1)
    other.load_state_dict(final.state_dict(), strict=True)
    check_runs(other, written(model, program.masks), args, kwargs)


@pytest.mark.thorough
@given(arch=architectures(max_layers=4))
@settings(max_examples=15)
def test_any_drawn_program_is_the_same_after_a_load(arch: Arch) -> None:
    model, args, kwargs = build(arch)
    program = fxprune.capture(model, args, kwargs)
    with tempfile.TemporaryDirectory() as folder:
        loaded = again(program, Path(folder))
        ours = imported(export(program, Path(folder, "net.py")))
    for train in (True, False):
        wanted = run(copy.deepcopy(program).train(train), args, kwargs)
        check_same(run(copy.deepcopy(loaded).train(train), args, kwargs), wanted)
        check_same(run(copy.deepcopy(ours).train(train), args, kwargs), wanted)


OLD = {"kwargs_dict": "dense", "tied_embedding": "masked", "buffers": "finalized"}


@pytest.mark.parametrize("name", OLD)
def test_files_of_earlier_versions_load(name: str, tmp_path: Path) -> None:
    """Files in tests/data were written when a .fxp could still hold views by stride and offset."""
    (model, args, kwargs), program = captured(name)
    program = FORMS[OLD[name]](program)
    loaded = load(Path(__file__).parents[1] / "data" / f"{name}.fxp")
    assert list(loaded.state_dict()) == list(program.state_dict())
    assert loaded.captured.first == program.captured.first
    assert str(loaded) == str(program)
    final = fxprune.finalize(loaded) if OLD[name] == "masked" else loaded
    other = copy.deepcopy(model)
    other.load_state_dict(final.state_dict(), strict=True)
    check_runs(loaded, other, args, kwargs)


# What a file holds


def test_the_tensors_of_a_file_have_the_names_and_shapes_of_the_state_dict(tmp_path: Path) -> None:
    program = masked(captured("lenet")[1])
    found = load_file(save(program, tmp_path / "net.fxp"))
    assert set(found) == set(program.state_dict())
    check_same({k: found[k] for k in program.state_dict()}, dict(program.state_dict()))


def test_a_tied_parameter_and_its_mask_are_there_once(tmp_path: Path) -> None:
    program = masked(captured("tied_embedding")[1])
    found = load_file(save(program, tmp_path / "net.fxp"))
    tied = {"emb.weight_orig", "emb.weight_mask", "out.weight_orig", "out.weight_mask"}
    assert set(found) & tied == {"emb.weight_orig", "emb.weight_mask"}
    loaded = load(tmp_path / "net.fxp")
    assert loaded.parameter("out.weight") is loaded.parameter("emb.weight")
    assert loaded.masks["out.weight"] is loaded.masks["emb.weight"]


def test_a_file_says_nothing_of_where_it_was_written_but_the_sources_own_lines(
    tmp_path: Path,
) -> None:
    save(captured("lenet")[1], tmp_path / "net.fxp")
    assert str(tmp_path) not in (tmp_path / "net.fxp").read_bytes().decode("latin-1")


def test_nodes_keep_their_path_shape_lines_and_author(tmp_path: Path) -> None:
    program = masked(captured("residual_cnn")[1])
    loaded = load(save(program, tmp_path / "net.fxp"))
    kept = (PATH, VALUE, "stack_trace", "fxprune.by")
    for ours, theirs in zip(loaded.graph.nodes, program.graph.nodes, strict=True):
        assert ours.name == theirs.name
        assert ours.meta == {key: theirs.meta[key] for key in kept if key in theirs.meta}


SAVED = {
    Input: SavedInput,
    InputSpec: SavedInputs,
    UnshapedSpec: SavedInputs,
}


@pytest.mark.smoke
@pytest.mark.parametrize("kind", SAVED, ids=lambda kind: kind.__name__)
def test_every_field_of_what_a_program_knows_is_saved(kind: Any) -> None:
    assert {field.name for field in fields(kind)} <= set(SAVED[kind].model_fields)


def test_no_field_of_captured_is_forgotten() -> None:
    known = {"inputs", "outputs", "first", "kind", "frozen", "deciders", "records", "passes"}
    assert {field.name for field in fields(Captured)} == known | {
        "shrinks",
        "notes",
        "refused",
        "replaced",
    }


# Tensors of every kind


def holding(**tensors: Any) -> Program:
    """A Program that adds up nothing and holds tensors as parameters or buffers."""
    module = net(lambda self, x: x * self.scale, scale=nn.Parameter(torch.tensor(2.0)))
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return fxprune.capture(module, (torch.ones(2, 3),))


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn),
    *(torch.complex64, torch.complex128),
]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_come_back(dtype: Any, shape: Any, tmp_path: Path) -> None:
    value = torch.arange(6.0)[: max(torch.Size(shape).numel(), 0)].reshape(shape).to(dtype)
    loaded = again(holding(value=value), tmp_path)
    check_same(loaded.value if shape is None else loaded._buffers["value"], value)


def test_bits_that_equal_nothing_come_back(tmp_path: Path) -> None:
    value = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1], dtype=torch.int32)
    loaded = again(holding(odd=value.view(torch.float32)), tmp_path)
    assert loaded.get_buffer("odd").view(torch.int32).tolist() == value.tolist()


@pytest.mark.parametrize("last", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_order_in_memory_comes_back(last: Any, tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=last))
    loaded = again(holding(weight=weight, turned=torch.randn(2, 3).t()), tmp_path)
    assert loaded.get_parameter("weight").stride() == weight.stride()
    assert loaded.get_buffer("turned").stride() == (1, 3)


def test_buffers_that_share_memory_share_it_again(tmp_path: Path) -> None:
    program = holding(whole=torch.arange(12.0))
    program._buffers["same"] = program.get_buffer("whole").detach()
    loaded = again(program, tmp_path)
    assert list(load_file(tmp_path / "first.fxp")) == ["scale", "whole"]
    loaded.get_buffer("whole").fill_(5.0)
    assert loaded.get_buffer("same").sum() == 60.0


@pytest.mark.parametrize(
    "view",
    [
        lambda whole: whole[2:8:2],
        lambda whole: whole.view(3, 4),
        lambda whole: whole.view(3, 4).t(),
        lambda whole: whole.view(torch.int32),
        lambda whole: whole[11:],
    ],
    ids=["strided", "reshaped", "transposed", "another dtype", "the end"],
)
def test_other_views_of_memory_that_is_shared_are_refused(
    view: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    program = holding(whole=torch.arange(12.0))
    program._buffers["other"] = view(program.get_buffer("whole"))
    with pytest.raises(FormatError, match=r"net\.fxp: '\w+' and '\w+' are different views of"):
        save(program, tmp_path / "net.fxp")
    assert os.listdir(tmp_path) == []


def test_parts_of_one_piece_of_memory_that_do_not_overlap_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    program = holding(low=torch.zeros(6), high=torch.zeros(2, 3), none=torch.zeros(0))
    program._buffers.update(low=whole[:6], high=whole[6:].view(2, 3), none=whole[3:3])
    loaded = again(program, tmp_path)
    assert loaded.get_buffer("low").tolist() == whole[:6].tolist()
    assert loaded.get_buffer("high").tolist() == whole[6:].view(2, 3).tolist()
    assert loaded.get_buffer("none").shape == (0,)


def test_a_part_of_a_large_piece_of_memory_is_saved_alone(tmp_path: Path) -> None:
    program = holding(part=torch.zeros(100_000)[5:8])
    program._buffers["part"] = torch.zeros(100_000)[5:8]
    again(program, tmp_path)
    assert (tmp_path / "first.fxp").stat().st_size < 10_000


def test_an_expanded_buffer_is_written_out(tmp_path: Path) -> None:
    program = holding()
    program.get_submodule("").register_buffer("wide", torch.tensor([[1.0], [2.0]]).expand(2, 3))
    assert again(program, tmp_path).get_buffer("wide").tolist() == [[1.0] * 3, [2.0] * 3]


def test_whether_gradients_are_wanted_comes_back(tmp_path: Path) -> None:
    program = holding(frozen=nn.Parameter(torch.ones(2), requires_grad=False))
    program.get_submodule("").register_buffer("learned", torch.ones(2, requires_grad=True))
    loaded = again(program, tmp_path)
    flags = {n: p.requires_grad for n, p in (*loaded.named_parameters(), *loaded.named_buffers())}
    assert flags == {"scale": True, "frozen": False, "learned": True}


class Own(Tensor):
    """A tensor with code of its own."""


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "on the meta device"),
        (torch.ones(2).as_subclass(Own), "a Own"),
    ],
    ids=["sparse", "meta", "subclass"],
)
def test_tensors_that_safetensors_has_not_are_refused(
    tensor: Tensor, reason: str, tmp_path: Path
) -> None:
    program = holding()
    program._buffers["odd"] = tensor
    with pytest.raises(FormatError, match=rf"net\.fxp: 'odd' is .*{reason}"):
        save(program, tmp_path / "net.fxp")
    assert os.listdir(tmp_path) == []


# Arguments and outputs of every nesting


class Pair(NamedTuple):
    """Outputs by name."""

    left: Tensor
    right: Any


made_up: Any = namedtuple


def nested(self: Any, x: Any, *, flag: bool = True, scale: float = float("inf")) -> Any:
    pair = OrderedDict(b=x["b"] + self.p, a=[x["a"][0], (x["a"][1],)])
    return {1: pair, "none": None, "three": 3, "two": Pair(x["b"], (x["b"] * 2,))}


def test_nested_arguments_and_outputs_come_back(tmp_path: Path) -> None:
    module = net(nested, p=nn.Parameter(torch.ones(3)))
    x = {"a": (torch.ones(2, 3), torch.zeros(2)), "b": torch.ones(2, 3)}
    loaded = again(fxprune.capture(module, (x,), {"scale": float("inf")}), tmp_path)
    found = loaded(x, scale=float("inf"))
    check_same(found, module(x, scale=float("inf")))
    assert type(found["two"]) is Pair
    assert type(found[1]) is OrderedDict


def test_a_namedtuple_of_a_program_that_is_gone_keeps_its_fields(tmp_path: Path) -> None:
    path = save(_with_pair("tests.core.nowhere"), tmp_path / "net.fxp")
    loaded = load(path)
    found = loaded(torch.ones(2))
    assert found._fields == ("left", "right")
    assert type(found).__name__ == "Away"
    save(loaded, tmp_path / "again.fxp")
    assert (tmp_path / "again.fxp").read_bytes() == path.read_bytes()


def _with_pair(module: str) -> Program:
    away = made_up("Away", ["left", "right"], module=module)
    made = net(lambda self, x: away(x, x * self.p), p=nn.Parameter(torch.ones(2)))
    return fxprune.capture(made, (torch.ones(2),), batch=None)


@pytest.mark.thorough
def test_a_class_that_is_not_registered_is_named(tmp_path: Path) -> None:
    path = save(_bert(), tmp_path / "net.fxp")
    kind: Any = "transformers.modeling_outputs.BaseModelOutputWithPooling"
    raw = path.read_bytes()
    assert kind.encode() in raw
    path.write_bytes(
        raw.replace(b"transformers.modeling_outputs", b"transformers.modeling_outpost")
    )
    with pytest.raises(FormatError, match=r"not registered.*import .*modeling_outpost. first"):
        load(path)


@pytest.mark.thorough
def test_a_program_of_a_hugging_face_model_loads_where_nothing_was_imported(tmp_path: Path) -> None:
    path = save(_bert(), tmp_path / "net.fxp")
    code = (
        "import sys, torch; from fxprune import load; "
        f"program = load({str(path)!r}); assert 'transformers.models.bert' not in sys.modules; "
        "ids = torch.ones(3, 5, dtype=torch.int64); found = program(input_ids=ids); "
        "sys.stdout.write(f'{type(found).__name__} {tuple(found.pooler_output.shape)}')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path.parent,
    )
    assert result.stdout == "BaseModelOutputWithPoolingAndCrossAttentions (3, 8)"


def _bert() -> Program:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=8, vocab_size=20)
    ids = torch.ones(2, 5, dtype=torch.int64)
    return fxprune.capture(transformers.BertModel(config).eval(), (), {"input_ids": ids})


# Graphs of every kind


def test_sizes_slices_and_dtypes_in_a_graph_come_back(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = x[:, 1:3, ..., None].to(torch.float64)[..., 0]
        y = y.contiguous(memory_format=torch.channels_last)
        z = torch.zeros(x.shape[0] * 2, x.shape[1] - 1, device=x.device, dtype=torch.bfloat16)
        w = x.clamp(min=-float("inf"), max=1e30).masked_fill(x > 2, float("-inf"))
        return y * self.p, z, torch.einsum("bijk->b", w[..., :1]), x.shape[0] // 2

    module = net(forward, p=nn.Parameter(torch.ones(1, dtype=torch.float64)))
    x = torch.randn(4, 3, 2, 2)
    loaded = again(fxprune.capture(module, (x,)), tmp_path)
    check_same(loaded(x), module(x))
    check_same(loaded(x[:2]), module(x[:2]))


def test_a_region_without_gradients_comes_back(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        return self.b(y)

    module = net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    loaded = again(fxprune.capture(module, (x,)), tmp_path)
    loaded(x).sum().backward()
    assert loaded.get_parameter("a.weight").grad is None
    assert loaded.get_parameter("b.weight").grad is not None


class Traced(nn.Module):
    """What symbolic_trace records as methods, functions and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor, scale: float = 2.0) -> Any:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        x = self.drop(self.fc(x.view(x.shape[0], -1).reshape(x.size(0), 4)))
        return {"halves": x.mul(scale).chunk(2, 1), "top": torch.max(x, dim=1)[0]}


def test_a_program_of_a_trace_without_an_example_comes_back(tmp_path: Path) -> None:
    program = masked(fxprune.capture(fx.symbolic_trace(Traced())))
    loaded = again(program, tmp_path)
    x = torch.randn(3, 3, 5, 5)
    for train in (True, False):
        check_same(run(loaded.train(train), (x,)), run(program.train(train), (x,)))
    assert str(loaded.inputs) == "x: any, scale: any"


def test_two_graphs_and_their_deciders_come_back(tmp_path: Path) -> None:
    (_, args, kwargs), program = captured("aux_head")
    loaded = again(program, tmp_path)
    assert list(loaded.graphs) == ["train", "eval"]
    assert loaded.captured.deciders == program.captured.deciders
    assert len(pytree.tree_leaves(loaded.train()(*args, **kwargs))) == 2
    assert len(pytree.tree_leaves(loaded.eval()(*args, **kwargs))) == 1


@torch.library.custom_op("fxprune_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operator that a file may not name."""
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_operator_from_elsewhere_is_refused_with_its_node(tmp_path: Path) -> None:
    module = net(lambda self, x: twice(x * self.p), p=nn.Parameter(torch.ones(2)))
    program = fxprune.capture(module, (torch.ones(3, 2),))
    with pytest.raises(FormatError, match=r"net\.fxp: node twice.*fxprune_tests.*not among"):
        save(program, tmp_path / "net.fxp")
    assert os.listdir(tmp_path) == []


# Files


def test_save_replaces_an_earlier_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.fxp"
    path.write_bytes(b"earlier")

    def fail(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fxp, "write_tensor_file", fail)
    with pytest.raises(FormatError, match="cannot be written: No space left"):
        save(holding(), path)
    assert path.read_bytes() == b"earlier"
    assert os.listdir(tmp_path) == ["net.fxp"]


def test_a_loaded_program_does_not_look_at_its_file(tmp_path: Path) -> None:
    path = save(captured("lenet")[1], tmp_path / "net.fxp")
    loaded = load(path)
    before = state_of(loaded)
    path.write_bytes(b"\0" * path.stat().st_size)
    check_same(dict(loaded.state_dict()), before)


def test_only_programs_are_saved(tmp_path: Path) -> None:
    with pytest.raises(PassTypeError, match=r"not Linear; call fxprune\.capture first"):
        save(nn.Linear(2, 2), tmp_path / "net.fxp")  # pyright: ignore[reportArgumentType]


def test_a_program_by_regions_is_refused_with_the_line(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x = self.b(x)
        return x

    module = net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    program = fxprune.capture(module, (torch.ones(2, 3),))
    with pytest.raises(FormatError, match=r"(?s)net\.fxp: a \.fxp file.*x\.sum\(\) > 0"):
        save(program, tmp_path / "net.fxp")
    assert os.listdir(tmp_path) == []
