"""Names of the source that clash with a Program's own, and what capture refuses with a reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, FxpruneError
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, saved

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
FREE = [
    "aliases",
    "example",
    "first",
    "inputs",
    "kind",
    "mask",
    "masks",
    "mode",
    "notes",
    "outputs",
    "owner",
    "parameter",
    "records",
    "value",
]
TAKEN = ["captured", "code", "device", "graph", "graphs", "meta", "recompile"]


def with_attribute(name: str, kind: str) -> nn.Module:
    """A linear layer and an attribute of that name, which forward uses."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = getattr(self, name)
        return self.l(found(x) if isinstance(found, nn.Module) else x * found)

    torch.manual_seed(0)
    model = net(forward, l=nn.Linear(3, 3))
    match kind:
        case "submodule":
            model.add_module(name, nn.Linear(3, 3))
        case "parameter":
            model.register_parameter(name, nn.Parameter(torch.randn(3)))
        case "buffer":
            model.register_buffer(name, torch.randn(3))
        case _:
            setattr(model, name, torch.randn(3))
    return model


each_kind = pytest.mark.parametrize("kind", ["submodule", "parameter", "buffer", "plain"])
each_kept_kind = pytest.mark.parametrize("kind", ["submodule", "parameter", "buffer"])


# Clashes


@each_kind
@pytest.mark.parametrize("name", FREE)
def test_names_of_the_source_mean_what_they_meant(name: str, kind: str) -> None:
    model = with_attribute(name, kind)
    program = fxprune.capture(model, (X,))
    check_forwards(program, copy.deepcopy(model), (X,))
    found = getattr(program, name)
    if kind == "submodule":
        check_same(found.weight, getattr(model, name).weight)
    else:
        check_same(found.detach(), getattr(model, name).detach())
    if kind in ("submodule", "parameter"):
        pruned = masked(program, path="*")
        final = fxprune.finalize(saved(pruned))
        check_same(final(X), pruned(X))
        assert list(final.state_dict()) == list(model.state_dict())


@each_kept_kind
@pytest.mark.parametrize("name", TAKEN)
def test_names_that_a_graph_module_needs_are_refused(name: str, kind: str) -> None:
    with pytest.raises(CaptureError, match=f"'{name}' is a name .*rename that attribute"):
        fxprune.capture(with_attribute(name, kind), (X,))


@pytest.mark.parametrize("name", TAKEN)
def test_plain_tensors_of_such_a_name_are_constants_or_refused(name: str) -> None:
    model = with_attribute(name, "plain")
    try:
        program = fxprune.capture(model, (X,))
    except CaptureError as error:
        assert f"'{name}' is a name" in str(error)  # noqa: PT017 - either will do
        return
    check_forwards(program, copy.deepcopy(model), (X,))


@each_kind
@pytest.mark.parametrize("name", TAKEN)
def test_deeper_in_the_tree_every_name_is_free(name: str, kind: str) -> None:
    inner = with_attribute(name, kind)
    model = net(lambda self, x: self.inner(x), inner=inner)
    program = fxprune.capture(model, (X,))
    check_forwards(program, copy.deepcopy(model), (X,))


def test_names_like_those_of_a_masked_parameter() -> None:
    """`weight_orig` and `weight_mask` may be the source's own, where there is no `weight`."""
    model = net(lambda self, x: x @ self.weight_orig + self.weight_mask)
    model.register_parameter("weight_orig", nn.Parameter(torch.randn(3, 3)))
    model.register_buffer("weight_mask", torch.randn(3))
    program = fxprune.capture(model, (X,))
    check_same(program(X), model(X))
    assert list(program.state_dict()) == ["weight_orig", "weight_mask"]
    assert not fxprune.is_pruned(program)
    pruned = masked(program)
    assert list(pruned.state_dict()) == ["weight_orig_orig", "weight_mask", "weight_orig_mask"]
    weight = model.get_parameter("weight_orig") * pruned.masks["weight_orig"]
    check_same(pruned(X), X @ weight + model.get_buffer("weight_mask"))


def test_a_source_that_has_all_three_names_is_captured() -> None:
    model = net(lambda self, x: x @ self.w + x @ self.w_orig + self.w_mask)
    model.register_parameter("w", nn.Parameter(torch.randn(3, 3)))
    model.register_parameter("w_orig", nn.Parameter(torch.randn(3, 3)))
    model.register_buffer("w_mask", torch.randn(3))
    program = fxprune.capture(model, (X,))
    check_same(program(X), model(X))
    assert not fxprune.is_pruned(program)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
@pytest.mark.parametrize("name", ["w_mask", "w_orig"])
def test_a_mask_never_takes_the_place_of_a_tensor_of_the_source(name: str, kind: str) -> None:
    model = net(lambda self, x: x @ self.w + x @ getattr(self, name))
    model.register_parameter("w", nn.Parameter(torch.randn(3, 3)))
    if kind == "buffer":
        model.register_buffer(name, torch.randn(3, 3))
    else:
        model.register_parameter(name, nn.Parameter(torch.randn(3, 3)))
    program = fxprune.capture(model, (X,))
    before = program(X)
    with pytest.raises(FxpruneError, match=name):
        masked(program, path="w")
    with pytest.raises(FxpruneError, match=name):
        fxprune.prune(
            program,
            {"rule": [{"select": "w", "method": "l1_unstructured", "amount": 0.5}]},
            inplace=True,
        )
    check_same(program(X), before)


# Refusals


def test_control_flow_on_values_is_refused_with_its_line() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line
            return x @ self.w
        return -x @ self.w

    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith("  # the line"))
    with pytest.raises(CaptureError) as caught:
        fxprune.capture(net(forward, w=nn.Parameter(torch.ones(3, 2))), (X,))
    message = str(caught.value)
    assert message.startswith("torch.export cannot take Net whole: ")
    assert f'{Path(__file__).name}", line {line}' in message
    assert "rewrite the line without control flow that depends on values" in message


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (x @ self.w)[: int(x.abs().sum())],
        lambda self, x: torch.from_numpy(x.numpy()) @ self.w,
        lambda self, x: object(),
    ],
    ids=["int", "numpy", "output"],
)
def test_what_export_cannot_take_is_a_capture_error(forward: Any) -> None:
    with pytest.raises(CaptureError, match=r"torch\.export cannot take Net whole"):
        fxprune.capture(net(forward, w=nn.Parameter(torch.ones(3, 2))), (X,))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.l(x) * x.sum().item(),
        lambda self, x: self.l(x[x[:, 0] > 0]),
        lambda self, x: self.l(torch.cat([x, x[x.argmax(0)]])),
    ],
    ids=["item", "select", "index"],
)
def test_values_that_steer_no_control_flow_are_captured(forward: Any) -> None:
    model = net(forward, l=nn.Linear(3, 2))
    program = fxprune.capture(model, (X,))
    for ours in (program, copy.deepcopy(program), saved(program)):
        check_forwards(ours, copy.deepcopy(model), (X,))


def test_an_error_of_the_source_is_a_capture_error_with_its_text() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export cannot take Linear whole: .*dim"):
        fxprune.capture(nn.Linear(3, 2), (torch.randn(4, 5),))


def test_a_failing_capture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x * self.w if x.sum() > 0 else x

    with pytest.raises(CaptureError):
        fxprune.capture(net(forward, w=nn.Parameter(torch.ones(3))), (X,))
    assert capfd.readouterr() == ("", "")


def test_a_capture_by_regions_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = net(lambda self, x: self.l(x) if x.sum() > 0 else x, l=nn.Linear(3, 3))
    assert list(fxprune.capture(model, (X.abs(),)).graphs) == ["l"]
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_copied_is_a_capture_error() -> None:
    class Uncopied:
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot copy this")

    with pytest.raises(CaptureError, match="cannot copy this"):
        fxprune.capture(net(lambda self, x: self.l(x), l=nn.Linear(3, 2), odd=Uncopied()), (X,))


def test_a_word_of_pythons_own_is_no_name() -> None:
    model = nn.Sequential(nn.ModuleDict({"class": nn.Linear(3, 2)}))
    with pytest.raises(CaptureError, match=r"Sequential\.0\.class: 'class' is a word of Python's"):
        fxprune.capture(model, (torch.zeros(2, 3),))
