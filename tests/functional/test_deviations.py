"""Where fxprune differs from torch.nn.utils.prune on purpose: each row of the table, shown twice.

A test shows what torch does as well, so that a row goes when torch changes. Test and row have the
same name; the tests of pruning calls are in `test_deviations_calls.py`.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune import functional as fx_prune
from tests.functional import test_deviations_calls
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import check_same, oracle_of, state_of

DEVIATIONS: tuple[tuple[str, str, str], ...] = (
    (
        "tied-weights",
        "masks one alias; the other reads dense weights, and `remove` changes the function",
        "one mask for all aliases; `remove` and `finalize` keep the function",
    ),
    (
        "tied-keys",
        "only the pruned alias gets `_orig` and `_mask` keys",
        "every alias gets them; loading takes torch's keys, and refuses aliases that differ",
    ),
    (
        "attention-out-proj",
        "the hook never fires: the mask does not act, and the second training step raises",
        "the mask acts, and it trains",
    ),
    (
        "called-twice",
        "multiplies once for each call of a module",
        "multiplies once for each forward; where masked, a gradient's zero may differ in sign",
    ),
    (
        "stale-reads",
        "`module.weight` is a copy that each forward renews: stale after a step, a load, `.to()`",
        "reads as the current product, always",
    ),
    (
        "deepcopy",
        "`copy.deepcopy` of a masked model raises until it has run without gradients",
        "works at any time",
    ),
    (
        "pickle",
        "needs the method's class where the model is read",
        "the masks alone are kept",
    ),
    (
        "failed-call",
        "a call that raises leaves the model changed: mask and hook fall apart, keys move",
        "leaves the Program as it was",
    ),
    (
        "mask-dtype",
        "an own method's mask keeps the dtype it was returned in",
        "every mask has its parameter's dtype",
    ),
    (
        "own-names",
        "overwrites a `P_mask` or `P_orig` of the model's own",
        "refuses, and names it",
    ),
    (
        "duplicates",
        "a parameter named twice in `global_unstructured` counts twice, and fewer are pruned",
        "counts once",
    ),
    (
        "generators",
        "`global_unstructured` raises on a generator of pairs, which it reads twice",
        "takes any iterable",
    ),
    (
        "channels-last",
        "unstructured methods raise on weights that are not contiguous",
        "prunes them as if they were",
    ),
    (
        "bool-amounts",
        "takes `False` for 0, and raises on `True` from inside `topk`",
        "refuses both",
    ),
    (
        "ties",
        "among equal scores, whichever `torch.topk` takes, which no one promises",
        '`ties="index"`, the default in recipes: lower (parameter order, flat index) first; '
        "fxprune.functional does as torch",
    ),
    (
        "key-order",
        "`remove` leaves the parameter behind the module's others",
        "`finalize` restores the source's order; `fxprune.functional.remove` does as torch",
    ),
)

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_every_row_has_a_test() -> None:
    names = [row[0] for row in DEVIATIONS]
    assert len(set(names)) == len(names)
    tests = {**globals(), **vars(test_deviations_calls)}
    for name in names:
        assert inspect.isfunction(tests[f"test_{name.replace('-', '_')}"])


def test_tied_weights() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    hooked, dense = copy.deepcopy(model), copy.deepcopy(model)
    torch_prune.l1_unstructured(hooked.get_submodule("emb"), "weight", 0.5)
    with torch.no_grad():
        dense.get_parameter("emb.weight").mul_(hooked.get_buffer("emb.weight_mask"))
    before = hooked(*args)
    torch_prune.remove(hooked.get_submodule("emb"), "weight")
    assert not torch.equal(before, dense(*args))
    assert not torch.equal(before, hooked(*args))

    program = fxprune.capture(model, args)
    fx_prune.l1_unstructured(program, "emb.weight", 0.5)
    check_same(program(*args), dense(*args))
    check_same(fxprune.finalize(program)(*args), dense(*args))
    fx_prune.remove(program, "out.weight")
    check_same(program(*args), dense(*args))


def test_tied_keys() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = fxprune.capture(model, args)
    fx_prune.l1_unstructured(program, "out.weight", 0.5)
    torch_prune.l1_unstructured(model.get_submodule("out"), "weight", 0.5)
    assert [key for key in model.state_dict() if "weight" in key and "hidden" not in key] == [
        "emb.weight",
        "out.weight_orig",
        "out.weight_mask",
    ]
    assert [key for key in program.state_dict() if "weight" in key and "hidden" not in key] == [
        "emb.weight_orig",
        "emb.weight_mask",
        "out.weight_orig",
        "out.weight_mask",
    ]
    program.load_state_dict(model.state_dict(), strict=True)
    state = {**state_of(model), "emb.weight": torch.zeros(15, 6)}
    with pytest.raises(RuntimeError, match="one tied parameter"):
        program.load_state_dict(state)


def test_attention_out_proj() -> None:
    source, args, _ = ZOO["attention"]()
    before = source.eval()(*args)
    program = fxprune.capture(source, args)
    model, other = copy.deepcopy(source), copy.deepcopy(source)
    for m in (model, other):
        torch_prune.l1_unstructured(m.get_submodule("attention.out_proj"), "weight", 1)
    stale = model(*args)
    with torch.no_grad():
        model.get_buffer("attention.out_proj.weight_mask").zero_()
        model.get_parameter("attention.out_proj.weight_orig").zero_()
    check_same(model(*args), stale)
    other(*args).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        other(*args).sum().backward()

    fx_prune.l1_unstructured(program, "attention.out_proj.weight", 1.0)
    assert not torch.equal(program(*args), before)
    program = fxprune.unmask(program)
    fx_prune.l1_unstructured(program, "attention.out_proj.weight", 0.5)
    oracle = oracle_of(source, program.masks)
    ours = torch.optim.SGD(program.parameters(), lr=0.1)
    theirs = torch.optim.SGD(oracle.hooked.parameters(), lr=0.1)
    for _ in range(2):
        ours.zero_grad()
        theirs.zero_grad()
        program(*args).square().sum().backward()
        oracle.forward(args, {}, train=False).square().sum().backward()
        ours.step()
        theirs.step()
    check_same(state_of(program), state_of(oracle.hooked))
    check_same(program(*args), oracle.forward(args, {}, train=False))


class Products(TorchDispatchMode):
    """Counts elementwise products of two matrices of equal shape."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [x.shape for x in args if isinstance(x, Tensor)]
        self.count += func is torch.ops.aten.mul.Tensor and len(set(shapes)) == 1
        return func(*args, **(kwargs or {}))


def test_called_twice() -> None:
    model, args, _ = ZOO["called_twice"]()
    program = fxprune.capture(model, args)
    torch_prune.l1_unstructured(model.get_submodule("shared"), "weight", 0.5)
    fx_prune.l1_unstructured(program, "shared.weight", 0.5)
    with Products() as theirs:
        model(*args)
    with Products() as ours:
        program(*args)
    assert (theirs.count, ours.count) == (2, 1)
    check_same(program(*args), model(*args))
    gradients: list[dict[str, Tensor]] = []
    for m in (program, model):
        m(*args).square().sum().backward()
        # + 0.0 makes -0.0 a +0.0
        gradients.append({k: p.grad + 0.0 for k, p in m.named_parameters() if p.grad is not None})
    check_same(*gradients)


def test_stale_reads() -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    torch_prune.l1_unstructured(model, "weight", 0.5)
    fx_prune.l1_unstructured(program, "weight", 0.5)
    state = {key: value + 1 for key, value in model.state_dict().items()}
    for m in (model, program):
        m.load_state_dict(state)
    current = state["weight_orig"] * state["weight_mask"]
    assert not torch.equal(model.weight, current)
    check_same(program.weight.detach(), current)

    assert model.double().weight.dtype == torch.float32
    assert program.double().weight.dtype == torch.float64

    program.weight_orig.grad = torch.ones(2, 3, dtype=torch.float64)
    torch.optim.SGD(program.parameters(), lr=1.0).step()
    check_same(program.weight.detach(), (current.double() - state["weight_mask"].double()))


def test_deepcopy() -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    torch_prune.l1_unstructured(model, "weight", 0.5)
    fx_prune.l1_unstructured(program, "weight", 0.5)
    for m in (model, program):
        m(X).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    check_same(copy.deepcopy(program)(X), program(X))


def test_pickle() -> None:
    class Local(torch_prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, t: Tensor, default_mask: Tensor
        ) -> Tensor:
            return default_mask * (t > 0)

    model = linear()
    program = fxprune.capture(model, (X,))
    Local.apply(model, "weight")
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        pickle.dumps(model)
    adopted = fxprune.capture(model, (X,))
    fx_prune.custom_from_mask(program, "weight", model.get_buffer("weight_mask"))
    for ours in (program, adopted):
        check_same(pickle.loads(pickle.dumps(ours))(X), model(X))


def test_key_order() -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    torch_prune.l1_unstructured(model, "weight", 0.5)
    torch_prune.remove(model, "weight")
    assert list(model.state_dict()) == ["bias", "weight"]
    fx_prune.l1_unstructured(program, "weight", 0.5)
    assert list(fxprune.finalize(program).state_dict()) == ["weight", "bias"]
    fx_prune.remove(program, "weight")
    assert list(program.state_dict()) == ["bias", "weight"]
    check_same(state_of(program), state_of(model))
