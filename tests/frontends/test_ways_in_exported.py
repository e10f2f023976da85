"""ExportedPrograms: captured with their own example, names and dynamic dimensions."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import CaptureError, InputError, PassTypeError
from tests.tools.capture_helpers import check_same, masked, run, state_of, written


class Net(nn.Module):
    """Nested and keyword inputs, tied weights, a hidden buffer, a constant, batch norm."""

    q: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Embedding(7, 4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("q", torch.ones(4), persistent=False)
        self.k = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: dict[str, Tensor], *, ids: Tensor, flag: bool = True) -> Any:
        hidden = torch.relu(self.norm(self.conv(x["image"]))).mean((2, 3))
        hidden = self.b(torch.tanh(self.a(hidden))) + self.q * self.k
        return {"out": hidden + self.table(ids).mean(1)} if flag else hidden


def inputs(batch: int = 4, length: int = 5) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(batch)
    image = {"image": torch.randn(batch, 2, 5, 5)}
    return (image,), {"ids": torch.randint(1, 6, (batch, length)), "flag": True}


def exported(*, train: bool = False, decomposed: bool = False) -> tuple[nn.Module, ExportedProgram]:
    torch.manual_seed(0)
    model = Net().train(train)
    args, kwargs = inputs()
    batch, length = Dim("n", min=2, max=16), Dim("m", max=64)
    shapes = {"x": {"image": {0: batch}}, "ids": {0: batch, 1: length}, "flag": None}
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    return model, program.run_decompositions() if decomposed else program


each_way = pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
RULE = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.4}


@each_way
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_an_exported_program_is_captured(train: bool, decomposed: bool) -> None:
    _, source = exported(train=train, decomposed=decomposed)
    before = {name: value.clone() for name, value in source.state_dict.items()}
    program = fxprune.capture(source)
    assert str(program.inputs) == (
        "x['image']: float32[batch, 2, 5, 5], ids: int64[batch, batch_2] in "
        f"{int(inputs()[1]['ids'].min())}..{int(inputs()[1]['ids'].max())}, flag = True"
    )
    oracle = copy.deepcopy(source.module())
    for ours in (program, pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        for batch, length in ((4, 5), (2, 7), (16, 60)):
            args, kwargs = inputs(batch, length)
            check_same(
                run(copy.deepcopy(ours), args, kwargs), run(copy.deepcopy(oracle), args, kwargs)
            )
    assert set(program.state_dict()) == set(source.state_dict)
    assert list(program.state_dict()) == list(source.module().state_dict())
    args, kwargs = inputs()
    program(*args, **kwargs)
    oracle(*args, **kwargs)
    # A copy of torch.fx's GraphModule saves the buffers that are not to be saved.
    theirs = oracle.state_dict()
    check_same(dict(program.state_dict()), {key: theirs[key] for key in program.state_dict()})
    check_same(dict(source.state_dict), before)


@each_way
def test_an_exported_program_is_pruned_and_finalized(decomposed: bool) -> None:
    model, source = exported(decomposed=decomposed)
    result = fxprune.compile(source, {"rule": [RULE], "finalize": {}})
    assert result.certificate
    final = result.program
    masks = fxprune.prune(source, {"rule": [RULE]}).masks
    assert list(masks) == ["conv.weight", "norm.weight", "table.weight", "a.weight"]
    dense = written(model, masks)
    args, kwargs = inputs()
    # Decomposed operators round otherwise than the model's own.
    check = check_same if not decomposed else torch.testing.assert_close
    check(final(*args, **kwargs)["out"], dense(*args, **kwargs)["out"])
    model.load_state_dict(final.state_dict(), strict=True)
    check_same(state_of(model), {key: final.state_dict()[key] for key in model.state_dict()})


def test_selection_knows_the_classes_and_operators_of_the_source() -> None:
    _, source = exported()
    program = masked(fxprune.capture(source), module="Conv2d", param="weight")
    assert list(program.masks) == ["conv.weight"]
    assert list(masked(fxprune.capture(source), op="linear", role="weight").masks) == ["a.weight"]
    assert set(program.aliases["a.weight"]) == {"a.weight", "b.weight"}
    assert repr(program.conv) == "Conv2d()"


def test_dynamic_dimensions_keep_their_range() -> None:
    program = fxprune.capture(exported()[1])
    args, kwargs = inputs(17)
    with pytest.raises(InputError, match="batch is 1 to 16"):
        program(*args, **kwargs)
    args, kwargs = inputs(4, 65)
    with pytest.raises(InputError, match="batch_2 is 1 to 64"):
        program(*args, **kwargs)
    assert program.example(batch=100)[1]["ids"].shape == (16, 64)


def test_a_static_export_stays_static() -> None:
    source = torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),))
    program = fxprune.capture(source)
    assert str(program.inputs) == "input: float32[4, 3]"
    with pytest.raises(InputError, match="4 needed where 2 stands"):
        program(torch.zeros(2, 3))


def test_the_report_says_that_flags_are_baked() -> None:
    program = fxprune.capture(exported(train=True)[1])
    assert "whose training flags are constants of the graph" in fxprune.report(program).notes[0]
    args, kwargs = inputs()
    check_same(program.eval()(*args, **kwargs), program.train()(*args, **kwargs))


def test_a_loaded_export_is_the_same() -> None:
    _, source = exported()
    file = io.BytesIO()
    torch.export.save(source, file)
    file.seek(0)
    program = fxprune.capture(torch.export.load(file))
    args, kwargs = inputs()
    check_same(program(*args, **kwargs), source.module()(*args, **kwargs))


def test_an_export_of_a_masked_program_comes_back_masked(tmp_path: Any) -> None:
    program = fxprune.prune(exported()[1], {"rule": [RULE]})
    args, kwargs = inputs()
    again = fxprune.capture(torch.export.export(program, args, kwargs, strict=False))
    for alias in [*program.masks, "b.weight"]:
        check_same(again.masks[alias], program.masks[alias])
    assert again.state_dict().keys() == program.state_dict().keys()
    check_same(fxprune.finalize(again)(*args, **kwargs), program(*args, **kwargs))
    # Of a tied parameter torch.export.load makes two, and the graph reads one of them.
    fxprune.export(program, tmp_path / "net.pt2")
    loaded = fxprune.capture(torch.export.load(tmp_path / "net.pt2"))
    assert loaded.masks.keys() == {*program.masks, "b.weight"} - {"a.weight"}
    check_same(loaded(*args, **kwargs), program(*args, **kwargs))


@pytest.mark.filterwarnings("ignore:The tensor attribute self.0.weight:UserWarning")
def test_an_export_of_a_model_that_torch_masked_is_adopted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    x = torch.randn(4, 3)
    program = fxprune.capture(torch.export.export(model, (x,), strict=False))
    assert list(program.masks) == ["0.weight"]
    check_same(fxprune.finalize(program)(x), model(x))


def test_regions_of_an_export_are_flat() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.a(x)
            with torch.no_grad():
                x = self.b(x.float())
            return x

    model, x = Cast(), torch.randn(4, 3)
    exported_cast = torch.export.export(model, (x,), strict=False)
    program = masked(fxprune.capture(exported_cast), op="linear", role="weight")
    assert list(program.masks) == ["a.weight", "b.weight"]
    check_same(program(x), written(model, program.masks)(x))


def test_what_does_not_fit_an_export_says_so() -> None:
    _, source = exported()
    with pytest.raises(CaptureError, match="batch=None: an ExportedProgram has its dynamic"):
        fxprune.capture(source, batch=None)
    with pytest.raises(CaptureError, match="nested otherwise than those of the export"):
        fxprune.capture(source, (torch.zeros(1),))
    with pytest.raises(PassTypeError, match=r"a torch\.export\.ExportedProgram will do as well"):
        fxprune.capture("net.pt2")  # pyright: ignore[reportArgumentType]
