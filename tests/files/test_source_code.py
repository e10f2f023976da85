"""Readable source: the file runs without fxprune, and equals the Program bit for bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FormatError
from fxprune.files.source import source_of
from fxprune.files.writers import export
from fxprune.program.program import Program
from tests.conftest import Golden
from tests.models.zoo import QUICK, ZOO
from tests.tools.batches import with_batch
from tests.tools.capture_helpers import captured, check_same, masked, net, run
from tests.tools.profiles import thorough_but

FORMS = {
    "masked": masked,
    "finalized": lambda program: fxprune.finalize(masked(program)),
}


def imported(path: Path) -> Any:
    """What the file's `load` returns."""
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def exported(program: Program, folder: Path) -> Any:
    return imported(export(program, folder / "net.py"))


@pytest.mark.parametrize("name", thorough_but(QUICK, ZOO))
@pytest.mark.parametrize("form", FORMS)
def test_the_source_equals_the_program_in_both_modes_at_any_batch(
    name: str, form: str, tmp_path: Path
) -> None:
    (_, args, kwargs), program = captured(name)
    program = FORMS[form](program)
    ours = exported(program, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["net.py", "net.safetensors"]
    assert list(ours.state_dict()) == list(program.state_dict())
    assert [m.training for m in ours.modules()] == [m.training for m in program.modules()]
    for train in (True, False):
        for batch in (4, 1, 7):
            given = with_batch(args, kwargs, batch)
            if train and batch == 1:
                continue  # batch norm refuses a single row
            check_same(run(ours.train(train), *given), run(program.train(train), *given), train)
    check_same(dict(ours.state_dict()), dict(program.state_dict()))


def test_the_source_is_readable(golden: Golden) -> None:
    golden(
        "source", "residual_cnn", source_of(masked(captured("residual_cnn")[1]), "net.safetensors")
    )
    golden("source", "aux_head", source_of(captured("aux_head")[1], "net.safetensors"))


def test_the_source_needs_no_fxprune(tmp_path: Path) -> None:
    (_, args, _), program = captured("lenet")
    export(program, tmp_path / "net.py")
    torch.save(args, tmp_path / "args.pt")
    code = (
        "import sys; sys.modules['fxprune'] = None\n"
        "import net, torch\n"
        "torch.save(net.load()(*torch.load('args.pt')), 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    # Another process may use another number of threads.
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), program(*args))


def test_the_source_trains_as_the_program(tmp_path: Path) -> None:
    (_, args, _), program = captured("frozen_bn")
    program = masked(program).train()
    ours = exported(program, tmp_path).train()
    for model in (ours, program):
        run(model, args).sum().backward()
    grads = {name: p.grad for name, p in program.named_parameters()}
    check_same({name: p.grad for name, p in ours.named_parameters()}, grads)


def test_tied_parameters_and_shared_modules_stay_one(tmp_path: Path) -> None:
    tied = exported(captured("tied_embedding")[1], tmp_path)
    assert tied.out.weight is tied.emb.weight
    shared = captured("shared_module")[1]
    ours = exported(shared, tmp_path)
    assert len(list(ours.modules())) == len(list(shared.modules()))
    assert len(list(ours.parameters())) == len(list(shared.parameters()))


def test_strides_dtypes_and_flags_of_tensors_stay(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    module = net(
        lambda self, x: torch.conv2d(x, self.weight) + self.shift + self.steps,
        weight=nn.Parameter(weight, requires_grad=False),
    )
    module.register_buffer("shift", torch.tensor(0.5, dtype=torch.float64), persistent=False)
    module.register_buffer("steps", torch.tensor(3))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    ours = exported(fxprune.capture(module, (x,)), tmp_path)
    assert ours.weight.stride() == weight.stride()
    assert not ours.weight.requires_grad
    assert list(ours.state_dict()) == ["weight", "steps"]
    assert "shift" in load_file(tmp_path / "net.safetensors")
    check_same(ours(x), module(x))


def test_nested_and_fixed_arguments_stay(tmp_path: Path) -> None:
    def forward(self: Any, x: Any, *, mode: str = "sum", rest: Any = None) -> Any:
        y = x["a"][0] * self.p + x["b c"]
        return {"out": [getattr(y, mode)(1), (y,)], 3: y}

    module = net(forward, p=nn.Parameter(torch.ones(3)))
    x = {"a": (torch.randn(2, 3),), "b c": torch.randn(2, 3)}
    ours = exported(fxprune.capture(module, (x,), {"mode": "sum", "rest": None}), tmp_path)
    check_same(ours(x), module(x))
    with pytest.raises(ValueError, match='mode is fixed to "sum" in this graph'):
        ours(x, mode="mean")
    with pytest.raises(ValueError, match="rest is fixed to None"):
        ours(x, rest=1)


class Pair(NamedTuple):
    """Outputs by name."""

    left: Tensor
    right: Tensor


def test_named_tuples_become_tuples(tmp_path: Path) -> None:
    module = net(lambda self, x: Pair(x * self.p, x), p=nn.Parameter(torch.ones(3)))
    x = torch.randn(2, 3)
    found = exported(fxprune.capture(module, (x,)), tmp_path)(x)
    assert type(found) is tuple
    check_same(found, tuple(module(x)))


def test_named_tuples_are_taken_as_arguments(tmp_path: Path) -> None:
    module = net(lambda self, x: x.left * self.p + x.right, p=nn.Parameter(torch.ones(3)))
    x = Pair(torch.randn(2, 3), torch.randn(2, 3))
    ours = exported(fxprune.capture(module, (x,)), tmp_path)
    check_same(ours(x), module(x))


def test_regions_without_gradients_and_of_autocast_stay(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(x)
            with torch.autocast("cpu", enabled=False):
                z = self.b(x)
        return y.float() + z

    module = net(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 2))
    x = torch.randn(4, 3)
    ours = exported(fxprune.capture(module, (x,)), tmp_path)
    check_same(ours(x), module(x))
    ours(x).sum().backward()
    assert ours.a.weight.grad is None
    assert ours.b.weight.grad is not None
    with pytest.raises(RuntimeError):
        ours(torch.randn(4, 5))
    assert torch.is_grad_enabled()


def test_a_trace_without_an_example_has_source(tmp_path: Path) -> None:
    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: float = 2.0) -> Any:
            x = self.fc(x.view(x.shape[0], -1))
            return torch.max(x.mul(scale).chunk(2, 1)[0], dim=1)[0]

    model = Traced()
    ours = exported(fxprune.capture(fx.symbolic_trace(model)), tmp_path)
    x = torch.randn(3, 2, 2)
    check_same(ours(x), model(x))
    check_same(ours(x, 3.0), model(x, 3.0))


def test_flags_that_disagree_are_refused_where_they_choose_a_graph(tmp_path: Path) -> None:
    (_, args, _), program = captured("stochastic_depth")
    ours = exported(program, tmp_path).train()
    ours.drops[0].eval()
    with pytest.raises(RuntimeError, match="set the training flags of 2 parts alike"):
        ours(*args)


def test_names_that_are_no_names_are_read_all_the_same(tmp_path: Path) -> None:
    heads = nn.ModuleDict({"a b": nn.Linear(3, 2), "torch": nn.Linear(3, 2)})

    def forward(self: Any, x: Tensor) -> Any:
        return self.heads["a b"](x) + self.heads["torch"](x)

    module = net(forward, heads=heads)
    x = torch.randn(2, 3)
    ours = exported(fxprune.capture(module, (x,)), tmp_path)
    check_same(ours(x), module(x))


def test_an_argument_that_hides_torch_is_refused(tmp_path: Path) -> None:
    module = net(lambda self, torch: torch * self.p, p=nn.Parameter(torch.ones(1)))
    program = fxprune.capture(module, (torch.ones(3, 2),))
    with pytest.raises(FormatError, match=r"net\.py: the argument 'torch' hides"):
        export(program, tmp_path / "net.py")


@torch.library.custom_op("fxprune_source::half", mutates_args=())
def half(x: Tensor) -> Tensor:
    """An operator that torch alone does not have."""
    return x / 2


@half.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_what_has_no_source_is_refused_with_its_node(tmp_path: Path) -> None:
    module = net(lambda self, x: half(x * self.p), p=nn.Parameter(torch.ones(1)))
    program = fxprune.capture(module, (torch.ones(3, 2),))
    with pytest.raises(FormatError, match=r"net\.py: node half.* is no operator of torch itself"):
        export(program, tmp_path / "net.py")
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'my net' is no name for a Python module"):
        export(captured("lenet")[1], tmp_path / "my net.py")


def test_both_files_are_replaced_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("net.py", "net.safetensors"):
        (tmp_path / name).write_text("earlier")
    moved: list[Any] = []
    move = os.replace

    def fails_late(source: Any, target: Any) -> None:
        moved.append(target)
        if len(moved) == 2:
            raise OSError(5, "Input/output error")
        move(source, target)

    monkeypatch.setattr(os, "replace", fails_late)
    with pytest.raises(FormatError, match="cannot be written: Input/output error"):
        export(captured("lenet")[1], tmp_path / "net.py")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"net.py": "earlier", "net.safetensors": "earlier"}
