"""Capture by regions: what torch.export cannot take whole keeps its Python code around graphs."""

from __future__ import annotations

import copy
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import CaptureError
from fxprune.program.regional import RegionalProgram
from tests.models import regional_nets as nets
from tests.tools.capture_helpers import check_same, run, saved, state_of

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
H = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) + 0.1
IDS = torch.arange(12).reshape(4, 3) % 11
S = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2))

# Each model with inputs that go different ways; the first is the example.
CASES: dict[str, tuple[type[nn.Module], list[Tensor], tuple[str, ...]]] = {
    "root": (nets.RootBranch, [X, -X, X[:1].repeat(7, 1)], ("stem", "up", "head")),
    "nested": (
        nets.Nested,
        [X, -X, 3 * X[:2]],
        ("front", "middle.0", "middle.1.l", "middle.2", "back.0", "back.1"),
    ),
    "loop": (nets.Loop, [8 * H, H, 100 * H[:3]], ("block", "head")),
    "tied": (nets.Tied, [IDS, IDS % 4, IDS[:2]], ("emb", "mid", "out")),
    "outside": (nets.Outside, [IDS, IDS[:2]], ("emb", "mid")),
    "ranks": (nets.Ranks, [H, -H, H[:2]], ("l",)),
    "recurrent": (nets.Recurrent, [S, -S, S[:1].repeat(5, 1, 1), S[0]], ("rnn", "attention")),
    "moody": (nets.Moody, [H, -H, H[:2]], ("inner", "head")),
    "constants": (nets.Constants, [H, -H, H[:2]], ("first", "second")),
    "walk": (nets.Walk, [H, -H, H[:2]], ("layers.0", "layers.2", "deep")),
}


def regions_of(program: Any) -> Any:
    return program.captured.regions


def regional(name: str) -> tuple[Any, Any, list[Tensor]]:
    """Return a model, what is captured of it, and inputs; its own each time."""
    model, program = _captured(name)
    return copy.deepcopy(model), copy.deepcopy(program), CASES[name][1]


@lru_cache
def _captured(name: str) -> tuple[nn.Module, RegionalProgram]:
    torch.manual_seed(0)
    kind, inputs, _ = CASES[name]
    model = kind()
    before = state_of(model)
    program = fxprune.capture(model, (inputs[0],))
    assert isinstance(program, RegionalProgram)
    check_same(state_of(model), before)
    return model, program


def check_alike(program: nn.Module, source: nn.Module, inputs: list[Tensor]) -> None:
    """Hold a program to its source on each way, in both modes, buffers included."""
    for train in (True, False):
        ours, theirs = copy.deepcopy(program).train(train), copy.deepcopy(source).train(train)
        for x in inputs:
            check_same(run(ours, (x,)), run(theirs, (x,)), (train, tuple(x.shape)))
        check_same(dict(ours.state_dict()), dict(theirs.state_dict()), train)


@pytest.mark.parametrize("name", CASES)
def test_a_regional_program_is_its_source(name: str) -> None:
    model, program, inputs = regional(name)
    assert tuple(regions_of(program)) == CASES[name][2]
    assert list(program.state_dict()) == list(model.state_dict())
    assert [n for n, _ in program.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [m.training for m in program.modules()] == [m.training for m in model.modules()]
    for ours in (program, copy.deepcopy(program), saved(program)):
        check_alike(ours, model, inputs)
    model.load_state_dict(program.state_dict())


@pytest.mark.smoke
def test_the_calls_of_a_region_run_its_graph() -> None:
    _, program, (x, *_) = regional("root")
    node = next(n for n in program.graphs["head"].nodes if "linear" in str(n.target))
    node.replace_all_uses_with(node.args[1])
    program.graphs["head"].erase_node(node)
    program.recompile()
    check_same(program(x), program.head.weight)
    check_same(copy.deepcopy(program)(x), program.head.weight)


def test_graphs_and_parameters_have_full_names() -> None:
    _, program, _ = regional("moody")
    assert list(program.graphs) == ["inner:train", "inner:eval", "head"]
    reads = {str(n.target) for g in program.graphs.values() for n in g.find_nodes(op="get_attr")}
    weights = {f"{path}.weight" for path in ("inner.always", "inner.sometimes", "head")}
    assert reads == weights | {w.replace("weight", "bias") for w in weights}
    assert program.parameter("head.weight") is program.head.weight
    assert list(program.aliases) == list(program.state_dict())


def test_a_region_follows_its_own_training_flag() -> None:
    model, program, (x, *_) = regional("moody")
    for side in (model, program):
        side.train()
        side.inner.eval()
    check_same(program(x), model(x))


def test_notes_name_the_regions_and_the_line() -> None:
    _, program, _ = regional("root")
    line = line_of("  # the branch")
    (note,) = fxprune.report(program).notes
    assert note == (
        "captured by regions (stem, up, head): torch.export cannot take RootBranch whole "
        f"(regional_nets.py, line {line}: if x.sum() > 0:  # the branch), so that its own Python "
        "code runs around them"
    )


def test_what_no_graph_reads_is_refused_with_its_reason() -> None:
    _, program, _ = regional("root")
    reasons = dict(fxprune.report(program).refused)
    place = f"(regional_nets.py, line {line_of('  # the branch')})"
    assert reasons.pop("scale") == (
        f"it is read by Python code that torch.export cannot take {place}"
    )
    assert list(reasons) == ["down.l.weight", "down.l.bias", "down.bn.weight", "down.bn.bias"]
    assert all("was not called with the example" in reason for reason in reasons.values())


def test_only_the_block_with_the_branch_stays_python() -> None:
    _, program, _ = regional("nested")
    place = f"(regional_nets.py, line {line_of('  # the gate')})"
    assert fxprune.report(program).refused == (
        ("middle.1.bias", f"it is read by Python code that torch.export cannot take {place}"),
    )


def test_a_weight_that_python_code_reads_as_well_is_refused() -> None:
    _, program, _ = regional("outside")
    reasons = dict(fxprune.report(program).refused)
    assert "is read by Python code that torch.export cannot take" in reasons["emb.weight"]
    assert "was not called" in reasons["idle.weight"]
    assert list(reasons) == ["emb.weight", "idle.weight", "idle.bias"]


def test_a_region_takes_sequences_of_any_length() -> None:
    torch.manual_seed(0)
    model, x = nets.Decoder(), torch.rand(2, 2, 8) * 3
    program = fxprune.capture(model, (x,))
    assert tuple(regions_of(program)) == ("layer", "head")
    assert regions_of(program)["layer"].inputs.inputs[0].shape == ("batch", "batch_2", 8)
    check_alike(program, model, [x, x[:1].repeat(3, 1, 1), x / 4])


def test_a_keyword_of_a_region_is_given_or_left_out() -> None:
    keyed = nets.Keyed()
    other = fxprune.capture(keyed, (H,), {"flip": True})
    assert tuple(regions_of(other)) == ("add", "head")
    for kwargs in ({"flip": True}, {"flip": False}, {}):
        for given in (H, -H, H[:1]):
            check_same(other(given, **kwargs), keyed(given, **kwargs), kwargs)


def test_a_batch_of_one_and_fixed_shapes() -> None:
    torch.manual_seed(0)
    model = nets.RootBranch().eval()
    for example, batch in ((X[:1], 0), (X, None)):
        program = fxprune.capture(model, (example,), batch=batch)
        assert tuple(regions_of(program)) == ("stem", "up", "head")
        check_alike(program, model, [X])


def test_masks_of_torch_are_adopted_in_regions_and_outside() -> None:
    torch.manual_seed(0)
    model = nets.RootBranch()
    for owner, name in ((model.stem.l, "weight"), (model.down.l, "weight"), (model, "scale")):
        torch_prune.l1_unstructured(owner, name, 0.5)
    program = fxprune.capture(model, (X,))
    assert isinstance(program, RegionalProgram)
    assert list(program.masks) == ["scale", "stem.l.weight", "down.l.weight"]
    assert list(program.state_dict()) == list(model.state_dict())
    hooked = copy.deepcopy(program)
    for x in (X, -X):
        check_same(run(hooked, (x,)), run(model, (x,)))
    final = fxprune.finalize(program).eval()
    check_same(final(-X), program.eval()(-X))
    source = nets.RootBranch()
    source.load_state_dict(final.state_dict())
    check_same(source.eval()(-X), final(-X))


def test_hooks_of_the_source_run_inside_a_region_or_around_it() -> None:
    torch.manual_seed(0)
    model = nets.RootBranch()
    model.head.register_forward_hook(_halved)
    model.stem.l.register_forward_pre_hook(_moved)
    program = fxprune.capture(model, (X,))
    assert tuple(regions_of(program)) == ("stem", "up", "head")
    check_alike(program, model, [X, -X])


def _halved(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output / 2


def _moved(module: nn.Module, args: Any) -> Any:
    return (args[0] + 1,)


def test_what_regions_cannot_take_either_is_a_capture_error_with_its_line() -> None:
    with pytest.raises(CaptureError) as caught:
        fxprune.capture(_Leaf(), (X,))
    message = str(caught.value)
    assert message.startswith("torch.export cannot take _Leaf whole: ")
    assert f'{Path(__file__).name}", line {line_of("  # the leaf", __file__)}' in message


class _Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w if x.sum() > 0 else x  # the leaf


def test_an_example_that_the_model_refuses_is_told_as_such() -> None:
    with pytest.raises(CaptureError, match=r"cannot take RootBranch whole: .*reduction dim"):
        fxprune.capture(nets.RootBranch(), (torch.ones(4, 5),))


def test_a_part_that_is_taken_out_runs_its_own_code_with_the_mask() -> None:
    _, program, _ = regional("root")
    masked = fxprune.prune(program, {"rule": [{"select": "head.weight", **L1}]})
    alone = pickle.loads(pickle.dumps(masked.head))
    y = torch.rand(2, 4)
    check_same(alone(y), masked.head(y))
    assert type(alone).__name__ == "Linear"
    assert isinstance(alone, nn.Linear)
    check_same(alone(y), torch.nn.functional.linear(y, masked.head.weight, masked.head.bias))


L1 = {"method": "l1_unstructured", "amount": 0.5}


def line_of(text: str, file: str | None = nets.__file__) -> int:
    lines = Path(file or "").read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(text))
