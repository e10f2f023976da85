"""adopt: a source's own `P_orig * P_mask` becomes a masked parameter P, or stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn

import fxprune
from fxprune.compiler.run import edit
from fxprune.errors import InvariantError
from fxprune.frontends.module import capture_module
from fxprune.passes.adopt import adopt_mask
from fxprune.program.program import Program
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.registry import create
from fxprune.rewrite.rewriter import Rewriter
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import is_same
from fxprune.verification.translation import Auditor
from tests.conftest import Golden
from tests.tools.helpers import both_texts, inputs, model, program, run

Forward = Callable[[Any, Tensor], Any]
MASK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
WEIGHT = torch.arange(9.0).view(3, 3) / 8 - 0.5


class Own(nn.Module):
    """Multiplies a parameter with a mask in its own forward."""

    def __init__(self, forward: Forward, mask: Tensor) -> None:
        super().__init__()
        self.w_orig = nn.Parameter(WEIGHT.clone())
        self.register_buffer("w_mask", mask.clone())
        self.w_other = nn.Parameter(WEIGHT.clone() + 1)
        self.compute = forward

    def forward(self, x: Tensor) -> Any:
        return self.compute(self, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_orig * m.w_mask) + m.w_other.sum()


def swapped(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_mask * m.w_orig)


def cast(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_orig * m.w_mask.to(m.w_orig.dtype))


def twice(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_mask * m.w_orig) + torch.relu(x @ (m.w_orig * m.w_mask))


def by_mode(m: Any, x: Tensor) -> Any:
    if m.training:
        return x @ (m.w_mask * m.w_orig), x + 1
    return x @ (m.w_mask * m.w_orig)


def source_of(forward: Forward, mask: Tensor = MASK) -> nn.Module:
    return Own(forward, mask)


X = torch.arange(12.0).view(4, 3) / 7


def adopted(forward: Forward, mask: Tensor = MASK) -> Program:
    return fxprune.capture(source_of(forward, mask), (torch.zeros(2, 3),))


def unadopted(forward: Forward) -> Program:
    """Capture a source as it is, before its products are adopted."""
    return capture_module(source_of(forward), (torch.zeros(2, 3),), {}, 0)[0]


# The rule: hits, refuses, once, and with equal outputs

DONE = "the product is adopted already"
HITS: list[tuple[Forward, int]] = [(plain, 6), (swapped, 6), (cast, 7), (twice, 8), (by_mode, 11)]


@pytest.mark.parametrize(("forward", "edits"), HITS, ids=[f.__name__ for f, _ in HITS])
def test_adopt_mask_hits(forward: Forward, edits: int, golden: Golden):
    p = unadopted(forward)
    before = text(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([adopt_mask])
    assert rewriter.edits == edits
    assert {refusal.reason for refusal in rewriter.refusals} <= {DONE}
    golden("adopt", forward.__name__, both_texts(before, text(p)))


@pytest.mark.parametrize("forward", [f for f, _ in HITS], ids=[f.__name__ for f, _ in HITS])
def test_an_adoption_has_the_effect_that_it_declares(forward: Forward):
    p = unadopted(forward)
    edit(p, create("adopt"), inplace=True, watch=Auditor())
    assert "w" in p.masks


def test_an_adoption_that_changes_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch):
    add_mask = Rewriter.add_mask

    def inverted(self: Rewriter, name: str, mask: Tensor) -> None:
        add_mask(self, name, 1 - mask)

    monkeypatch.setattr(Rewriter, "add_mask", inverted)
    with pytest.raises(InvariantError, match=r"'w_mask' is not its mask in the graph before"):
        edit(unadopted(plain), create("adopt"), inplace=True, watch=Auditor())


def scaled(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_orig * m.w_other)


def past_the_mask(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_orig * m.w_mask) + m.w_orig.sum()


def scaled_too(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_mask * m.w_orig) + (m.w_orig * 2).sum()


def mask_alone(m: Any, x: Tensor) -> Tensor:
    return x @ (m.w_orig * m.w_mask) + m.w_mask.sum()


READ_PLAIN = "w_orig is read without its mask as well"
READ_ALONE = "w_mask is read elsewhere as well"
NO_PAIR = "the factors are not P_orig and P_mask of one module"
REFUSED: list[tuple[Forward, list[tuple[str, str]]]] = [
    (scaled, [(NO_PAIR, "mul")]),
    (past_the_mask, [(READ_PLAIN, "mul")]),
    (scaled_too, [(READ_PLAIN, "mul"), (NO_PAIR, "mul_1")]),
    (mask_alone, [(READ_ALONE, "mul")]),
]


@pytest.mark.parametrize(("forward", "reasons"), REFUSED, ids=[f.__name__ for f, _ in REFUSED])
def test_adopt_mask_refuses(forward: Forward, reasons: list[tuple[str, str]]):
    p = unadopted(forward)
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([adopt_mask])
    nodes = {node.name: node for node in p.graph.nodes}
    assert rewriter.refusals == [Refusal(reason, nodes[name]) for reason, name in reasons]
    assert rewriter.edits == 0
    assert snapshot(p) == before


@pytest.mark.parametrize("forward", [forward for forward, _ in HITS])
def test_adopt_mask_is_idempotent(forward: Forward):
    p = adopted(forward)
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([adopt_mask])
    assert rewriter.edits == 0
    assert {refusal.reason for refusal in rewriter.refusals} == {DONE}
    assert run(p, create("adopt"))[1].edits == 0
    assert snapshot(p) == before


EQUAL = [*(forward for forward, _ in HITS), *(forward for forward, _ in REFUSED)]


@pytest.mark.parametrize("forward", EQUAL)
def test_adopt_mask_keeps_semantics(forward: Forward):
    source, p = source_of(forward), adopted(forward)
    for train in (True, False):
        expected = source.train(train)(X)
        assert is_same(p.train(train)(X), expected)
        assert is_same(fxprune.finalize(p).train(train)(X), expected)


# What becomes of the names


@pytest.mark.parametrize("forward", [forward for forward, _ in HITS])
def test_an_adopted_parameter_is_a_masked_one(forward: Forward):
    p = adopted(forward)
    assert list(p.captured.first) == ["w", "w_other"]
    assert is_same(dict(p.masks), {"w": MASK})
    assert is_same(p.value("w"), WEIGHT * MASK)
    final = fxprune.finalize(p)
    assert list(final.state_dict()) == ["w", "w_other"]
    assert is_same(final.get_parameter("w").detach(), WEIGHT * MASK)


@pytest.mark.parametrize("forward", [forward for forward, _ in REFUSED])
def test_what_is_refused_keeps_its_names(forward: Forward):
    p = adopted(forward)
    assert list(p.state_dict()) == list(source_of(forward).state_dict())
    assert not p.masks


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("forward", [plain, cast])
def test_a_mask_of_a_narrow_dtype_acts_all_the_same(forward: Forward, dtype: torch.dtype):
    mask = MASK.to(dtype)
    p = adopted(forward, mask)
    assert is_same(p(X), source_of(forward, mask)(X))
    assert is_same(fxprune.finalize(p)(X), p(X))


def widened(m: Any, x: Tensor) -> Tensor:
    return x.double() @ (m.w_orig * m.w_mask)


def cast_wide(m: Any, x: Tensor) -> Tensor:
    return x.double() @ (m.w_orig * m.w_mask.double())


@pytest.mark.parametrize(
    ("forward", "dtype"), [(widened, torch.float64), (cast_wide, torch.float32)]
)
def test_a_product_of_a_wider_dtype_stays_one(forward: Forward, dtype: torch.dtype):
    mask = MASK.to(dtype) / 3
    source, p = source_of(forward, mask), adopted(forward, mask)
    assert is_same(p(X), source(X))
    assert is_same(fxprune.finalize(p)(X), source(X))


def test_a_buffer_of_another_shape_is_no_mask():
    p = adopted(plain, torch.ones(1, 3))
    assert not p.masks
    assert is_same(p(X), source_of(plain, torch.ones(1, 3))(X))


def masked_when_training(m: Any, x: Tensor) -> Any:
    return (x @ (m.w_orig * m.w_mask), x + 1) if m.training else x @ m.w_orig


def test_a_mask_that_acts_in_one_mode_only_is_not_adopted():
    source, p = source_of(masked_when_training), adopted(masked_when_training)
    for train in (True, False):
        assert is_same(p.train(train)(X), source.train(train)(X))
        assert is_same(fxprune.finalize(p).train(train)(X), source.train(train)(X))


# Models that torch.nn.utils.prune masked


def hooked() -> nn.Module:
    source = model("mlp")
    torch_prune.l1_unstructured(source.get_submodule("0"), "weight", 0.5)
    torch_prune.ln_structured(source.get_submodule("2"), "weight", 1, 2, 0)
    return source


def test_hooked_masks_are_adopted(golden: Golden):
    source = hooked()
    p = fxprune.capture(source, inputs("mlp"))
    golden("adopt", "hooked", both_texts(text(program("mlp")), text(p)))
    assert is_same(dict(p.state_dict()), dict(source.state_dict()))
    assert is_same(p(*inputs("mlp")), source(*inputs("mlp")))
    assert [record.rule for record in p.records] == ["torch.nn.utils.prune"]


def test_capturing_again_adopts_nothing_more():
    p = fxprune.capture(hooked(), inputs("mlp"))
    before = snapshot(p)
    assert run(p, create("adopt"))[1].edits == 0
    assert snapshot(p) == before
