"""Graphs of torch.fx.symbolic_trace: captured without an example, and with one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.nn.utils import prune as torch_prune

import fxprune.functional
from fxprune.errors import CaptureError, InputError, SelectError
from fxprune.program.program import Program
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, written

RULE = {
    "select": {"op": ["conv2d", "linear"], "role": "weight"},
    "method": "l1_unstructured",
    "scope": "global",
    "amount": 0.4,
}
RECIPE = {"rule": [RULE], "finalize": {}}
# The models of the zoo that plain symbolic tracing takes.
NAMES = ["residual_cnn", "depthwise_se", "concat", "called_twice", "shared_module", "frozen_bn"]


def traced(name: str) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    model, args, _ = ZOO[name]()
    return fx.symbolic_trace(model), args


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
V = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("example", [True, False], ids=["with args", "without args"])
def test_a_trace_is_captured(name: str, example: bool) -> None:
    source, args = traced(name)
    before = copy.deepcopy(source.state_dict())
    program = fxprune.capture(source, args if example else ())
    check_forwards(program, copy.deepcopy(source), args)
    check_same(dict(source.state_dict()), dict(before))


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_without_an_example_is_pruned_and_finalized(name: str) -> None:
    source, args = traced(name)
    program = fxprune.prune(source, {"rule": [RULE]})
    dense = written(source, program.masks)
    assert program.masks
    for ours in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        check_forwards(ours, copy.deepcopy(dense), args, keys=False)
    final = fxprune.finalize(program)
    check_forwards(final, copy.deepcopy(dense), args)
    copy.deepcopy(source).load_state_dict(final.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["residual_cnn", "shared_module"])
def test_what_torch_does_with_it_afterwards(name: str) -> None:
    source, args = traced(name)
    program = fxprune.prune(source, {"rule": [RULE]}).eval()
    expected = program(*args)
    torch._dynamo.reset()
    check_same(torch.compile(program, fullgraph=True, backend="eager")(*args), expected)
    exported = torch.export.export(program, args, strict=False)
    check_same(exported.module()(*args), expected)
    again = fxprune.capture(program, args)
    check_same(again(*args), expected)


def test_masked_training_is_that_of_the_hooked_trace() -> None:
    source = fx.symbolic_trace(cnn())
    program = fxprune.prune(source, {"rule": [RULE]})
    hooked = copy.deepcopy(source)
    for name, mask in program.masks.items():
        path, _, attribute = name.rpartition(".")
        torch_prune.custom_from_mask(hooked.get_submodule(path), attribute, mask)
    for model in (program, hooked):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for step in range(3):
            optimizer.zero_grad()
            run(model, (X,), seed=step).square().sum().backward()
            optimizer.step()
    check_same(dict(program.state_dict()), dict(hooked.state_dict()))


def test_training_flags_are_live_one_by_one() -> None:
    source = fx.symbolic_trace(cnn())
    program = fxprune.capture(source)
    for model in (source, program):
        model.train()
        model.get_submodule("1").eval()
    check_same(run(program, (X,)), run(source, (X,)))
    check_same(dict(program.state_dict()), dict(source.state_dict()))
    program.get_submodule("3").eval()
    source.get_submodule("3").eval()
    check_same(run(program, (X,)), run(source, (X,)))


def test_a_certificate_without_an_example_rests_on_the_graph() -> None:
    source = fx.symbolic_trace(cnn())
    for recipe in (RECIPE, {"rule": [RULE]}, {"rule": [RULE], "finalize": {"zeros": "clean"}}):
        result = fxprune.compile(source, recipe)
        assert result.certificate
        assert "every input, as graphs and tensors are equal" in result.certificate.to_json()
    with_args = fxprune.compile(source, RECIPE, (X,)).certificate
    assert with_args
    assert "the given input" in with_args.to_json()


def test_verify_without_an_example_finds_what_differs() -> None:
    program = fxprune.capture(fx.symbolic_trace(cnn()))
    assert fxprune.verify(copy.deepcopy(program), program)
    other = copy.deepcopy(program)
    with torch.no_grad():
        other.get_buffer("1.running_mean")[0] = 0.5
    found = fxprune.verify(other, program)
    assert not found
    assert "the values of '1.running_mean' differ" in str(found)
    assert fxprune.verify(other, program, (X,)).failures
    masks = fxprune.prune(program, {"rule": [RULE]})
    assert "the values of '0.weight' differ" in str(fxprune.verify(masks, program))
    short = fxprune.capture(fx.symbolic_trace(cnn()[:-1]))
    assert "the graphs for both differ" in str(fxprune.verify(short, program))
    with pytest.raises(InputError, match="verify has no input to compare on"):
        fxprune.verify(program, fx.symbolic_trace(cnn()))


def test_a_finalize_that_changes_outputs_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.errors import InvariantError
    from fxprune.passes.fold_masks import FoldMasks

    program = fxprune.prune(fx.symbolic_trace(cnn()), {"rule": [RULE]})
    monkeypatch.setattr(FoldMasks, "_product", lambda self, p, n: p.value(n) + 1)
    with pytest.raises(InvariantError, match=r"the values of '0\.weight' differ"):
        fxprune.finalize(program, inplace=True)
    assert list(program.masks) == ["0.weight", "6.weight"]


def test_what_needs_shapes_says_why(tmp_path: Any) -> None:
    program = fxprune.capture(fx.symbolic_trace(cnn()))
    for ask in (program.example, lambda: fxprune.export(program, tmp_path / "net.pt2")):
        with pytest.raises(InputError, match="captured from a traced graph without an example"):
            ask()
    assert list(tmp_path.iterdir()) == []
    fxprune.export(program, tmp_path / "net.safetensors")
    assert str(program.inputs) == "input: any"
    assert fxprune.report(program).total > 0


class Odd(nn.Module):
    """Layers that no trace can open, beside one that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.lstm = nn.LSTM(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.normed = nn.utils.weight_norm(nn.Linear(4, 3))  # hooks

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(self.head(x))[0]
        return self.normed(self.attention(x, x, x)[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_layers_that_stay_as_they_are() -> None:
    torch.manual_seed(0)
    source = fx.symbolic_trace(Odd())
    args = (torch.randn(4, 2, 3),)
    program = fxprune.capture(source)
    check_forwards(program, source, args)
    check_forwards(copy.deepcopy(program), source, args)
    again = pickle.loads(pickle.dumps(program))
    check_forwards(again, source, args)
    assert list(masked(program, op="linear").masks) == ["head.weight", "head.bias"]
    for name in ("lstm.weight_ih_l0", "attention.out_proj.weight", "normed.weight_v"):
        with pytest.raises(SelectError, match="cannot be pruned: it is read inside the layer"):
            fxprune.functional.l1_unstructured(program, name, amount=0.5)
        assert not program.masks


def test_a_parameter_that_is_read_in_the_open_and_inside_a_layer_is_refused() -> None:
    torch.manual_seed(0)
    model: Any = net(
        lambda self, x: self.lstm(self.open(x))[0], open=nn.Linear(4, 4), lstm=nn.LSTM(4, 1)
    )
    model.lstm.weight_ih_l0 = model.open.weight
    program = fxprune.capture(fx.symbolic_trace(model))
    with pytest.raises(SelectError, match="read inside the layer 'lstm'"):
        fxprune.functional.l1_unstructured(program, "open.weight", amount=0.5)


class Leafy(fx.Tracer):
    """Keeps convolutional blocks of one's own as layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Sequential) or super().is_leaf_module(m, module_qualified_name)


def test_a_layer_of_a_tracer_of_one_s_own() -> None:
    model = net(lambda self, x: self.head(self.block(x)), block=cnn(), head=nn.Linear(3, 2))
    tracer = Leafy()
    source = fx.GraphModule(tracer.root if hasattr(tracer, "root") else model, tracer.trace(model))
    program = fxprune.capture(source)
    check_forwards(program, copy.deepcopy(source), (X,))


def test_masks_of_torch_are_adopted() -> None:
    model = cnn()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    source = fx.symbolic_trace(model)
    program = fxprune.capture(source)
    assert list(program.masks) == ["0.weight"]
    check_same(program.eval()(X), source.eval()(X))


def test_arguments_with_defaults_and_nested_outputs() -> None:
    def forward(self: Any, x: Tensor, scale: float = 2.0) -> Any:
        x = self.fc(x) * scale
        return {"a": [x, (x + 1,)], "b": None, "c": 3}

    source = fx.symbolic_trace(net(forward, fc=nn.Linear(3, 2)))
    program = fxprune.capture(source)
    for args, kwargs in [((V,), {}), ((V, 3.0), {}), ((V,), {"scale": 0.5}), ((), {"x": V})]:
        found = program(*args, **kwargs)
        check_same(found, dict(source(*args, **kwargs)))
        assert type(found["a"]) is list


def test_a_trace_that_was_edited_keeps_what_its_graph_does_not_read() -> None:
    source = fx.symbolic_trace(cnn())
    source.add_module("spare", nn.Linear(2, 2))
    source.register_parameter("alone", nn.Parameter(torch.ones(2)))
    source.register_buffer("hidden", torch.ones(2), persistent=False)
    for program in (fxprune.capture(source), fxprune.capture(source, (X,))):
        assert list(program.state_dict()) == list(source.state_dict())
        assert "hidden" in dict(program.named_buffers())
    assert next(iter(fxprune.capture(source).parameters())) is not source.alone


def test_graphs_that_need_an_example_say_so() -> None:
    nested = fx.symbolic_trace(net(lambda self, x: x["a"] + 1), concrete_args={"x": {"a": PH}})
    with pytest.raises(CaptureError, match="nests its arguments, which needs an example"):
        fxprune.capture(nested)
    many = fx.symbolic_trace(net(lambda self, x, *xs: self.fc(x), fc=nn.Linear(3, 2)))
    with pytest.raises(CaptureError, match=r"takes \*xs, which needs an example"):
        fxprune.capture(many)


def test_a_masked_program_of_a_trace_moves_and_casts() -> None:
    program = fxprune.prune(fx.symbolic_trace(cnn()), {"rule": [RULE]}).double().eval()
    assert program(X.double()).dtype is torch.float64
    assert program.to("meta")(X.double().to("meta")).is_meta


def test_an_inplace_prune_keeps_the_parameters() -> None:
    program: Program = fxprune.capture(fx.symbolic_trace(cnn()))
    weight = program.parameter("0.weight")
    fxprune.prune(program, {"rule": [RULE]}, inplace=True)
    assert program.parameter("0.weight") is weight
    fxprune.finalize(program, inplace=True)
    assert program.parameter("0.weight") is weight
