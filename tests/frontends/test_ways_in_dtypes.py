"""Models on meta, in narrow and wide dtypes, in channels_last; and forwards with any keywords."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, written

RULE = {"select": {"ndim": [2, 4]}, "method": "l1_unstructured", "scope": "global", "amount": 0.4}
DTYPES = [torch.bfloat16, torch.float16, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@each_dtype
def test_a_model_in_another_dtype(dtype: torch.dtype) -> None:
    model, x = cnn().to(dtype), X.to(dtype)
    program = fxprune.capture(model, (x,))
    check_forwards(copy.deepcopy(program), copy.deepcopy(model), (x,))
    result = fxprune.compile(model, {"rule": [RULE], "finalize": {}}, (x,))
    assert result.certificate
    masks = fxprune.prune(program, {"rule": [RULE]}).masks
    assert {mask.dtype for mask in masks.values()} == {dtype}
    check_same(result.program.eval()(x), written(model, masks).eval()(x))
    assert {v.dtype for v in result.program.state_dict().values()} == {dtype, torch.int64}


@each_dtype
def test_the_masks_of_another_dtype_are_torch_s(dtype: torch.dtype) -> None:
    """Scores are compared in the dtype of the weights, as torch does."""
    from torch.nn.utils import prune as torch_prune

    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).to(dtype)
    rule = {**RULE, "scope": "local"}
    program = fxprune.prune(model, {"rule": [rule]}, args=(torch.zeros(2, 16, dtype=dtype),))
    for layer, name in zip(model, program.masks, strict=True):
        torch_prune.l1_unstructured(layer, "weight", amount=0.4)
        ours, theirs = program.masks[name], layer.get_buffer("weight_mask")
        assert int(ours.sum()) == int(theirs.sum())
        values = layer.get_parameter("weight_orig").detach().abs()
        # Among equal magnitudes the choice may differ, the pruned magnitudes may not.
        check_same(values[ours == 0].sort().values, values[theirs == 0].sort().values)


def in_channels_last(model: Any) -> Any:
    # torch's stubs leave this out for modules.
    return model.to(memory_format=torch.channels_last)


def formats(model: nn.Module) -> list[bool]:
    weights = [p for p in model.parameters() if p.dim() == 4]
    return [p.is_contiguous(memory_format=torch.channels_last) for p in weights]


@pytest.mark.parametrize("zeros", ["keep", "clean"])
def test_channels_last_weights_stay_so(zeros: str) -> None:
    model = in_channels_last(cnn())
    x = X.to(memory_format=torch.channels_last)
    program = fxprune.capture(model, (x,))
    check_forwards(copy.deepcopy(program), copy.deepcopy(model), (x,))
    pruned = fxprune.prune(program, {"rule": [RULE]})
    for ours in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert formats(ours) == formats(model)
        assert all(
            mask.is_contiguous(memory_format=torch.channels_last)
            for mask in ours.masks.values()
            if mask.dim() == 4
        )
    final = fxprune.finalize(pruned, zeros=zeros)
    assert formats(final) == formats(model) == [True, True]
    dense = written(model, pruned.masks).eval()
    found = final.eval()(x)
    assert found.stride() == dense(x).stride()
    assert torch.equal(found, dense(x)) if zeros == "clean" else True
    check_same(pruned.eval()(x), dense(x))
    if zeros == "keep":
        check_same(found, dense(x))
    dense.load_state_dict(final.state_dict(), strict=True)


def test_a_program_moved_to_channels_last() -> None:
    program = masked(cnn(), (X,)).eval()
    expected = program(X)
    moved = in_channels_last(copy.deepcopy(program))
    torch.testing.assert_close(moved(X), expected)  # other kernels round otherwise
    assert all(formats(moved))


def test_a_model_on_meta_is_captured_and_selected() -> None:
    with torch.device("meta"):
        model = cnn()
    x = torch.randn(4, 3, 6, 6, device="meta")
    program = fxprune.capture(model, (x,))
    assert str(program.inputs) == "input: float32[batch, 3, 6, 6]"
    assert program(x).shape == (4, 3)
    assert list(program.state_dict()) == list(model.state_dict())
    rule = {"select": {"op": "conv2d", "role": "weight"}, "method": "identity"}
    ones = fxprune.prune(program, {"rule": [rule]})
    assert list(ones.masks) == ["0.weight", "3.weight"]
    assert all(mask.is_meta for mask in ones.masks.values())
    real = cnn()
    final = fxprune.finalize(ones).to_empty(device="cpu")
    final.load_state_dict(real.state_dict(), strict=True)
    check_same(run(final.eval(), (X,)), run(real.eval(), (X,)))


@pytest.mark.parametrize("method", ["l1_unstructured", "ln_structured"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_ranking_on_meta_says_that_there_are_no_values(method: str, scope: str) -> None:
    if method == "ln_structured" and scope == "global":
        pytest.skip("needs coupled = true")
    with torch.device("meta"):
        model = cnn()
    program = fxprune.capture(model, (torch.randn(4, 3, 6, 6, device="meta"),))
    rule: dict[str, Any] = {**RULE, "method": method, "scope": scope}
    if method == "ln_structured":
        rule.update(n=2, dim=0)
    with pytest.raises(FxpruneError, match="meta"):
        fxprune.prune(program, {"rule": [rule]}, inplace=True)
    assert not program.masks


class Open(nn.Module):
    """A forward with keywords of any name, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor | None = None, **options: Tensor) -> Tensor:
        x = options["y"] if x is None else x
        return nn.functional.dropout(self.norm(self.fc(x)), training=self.training)


@pytest.mark.parametrize("keyword", ["x", "y"])
def test_a_forward_with_any_keywords_changes_nothing_at_capture(keyword: str) -> None:
    torch.manual_seed(0)
    model, x = Open(), torch.randn(4, 6)
    program = fxprune.capture(model, (), {keyword: x})
    assert program.inputs.smallest == 1
    check_same(dict(program.state_dict()), dict(model.state_dict()))
    check_same(run(program, (), {keyword: x}), run(model, (), {keyword: x}))


def test_weights_of_several_dtypes_are_ranked_together() -> None:
    torch.manual_seed(0)
    model = net(
        lambda self, x: self.b(self.a(x).to(torch.bfloat16)),
        a=nn.Linear(6, 6),
        b=nn.Linear(6, 3).to(torch.bfloat16),
    )
    x = torch.randn(4, 6)
    program = masked(model, (x,), ndim=2)
    assert [m.dtype for m in program.masks.values()] == [torch.float32, torch.bfloat16]
    check_same(fxprune.finalize(program)(x), written(model, program.masks)(x))
