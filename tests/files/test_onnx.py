"""ONNX: every named model, masked, gives in onnxruntime what it gives in torch, at any batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.errors import FormatError
from fxprune.files.writers import export
from fxprune.program.program import Program
from tests.models.zoo import ZOO
from tests.tools.batches import with_batch
from tests.tools.capture_helpers import captured, masked, net
from tests.tools.profiles import thorough_unless

BATCHES = (1, 2, 5)
FORMS = {
    "masked": masked,
    "finalized": lambda program: fxprune.finalize(masked(program)),
}
# Models whose two forms are both exported; one form takes a few seconds, and masks are all alike.
BOTH_FORMS = ("lenet", "tied_embedding", "lstm")

cases = [(name, form) for name in ZOO for form in FORMS if form == "masked" or name in BOTH_FORMS]
each_case = pytest.mark.parametrize(
    ("name", "form"), [thorough_unless(case[0] == "aux_head", *case) for case in cases]
)


def check_runtime(program: Program, path: Path, args: Any, kwargs: Any) -> None:
    """Hold onnxruntime to torch in the shapes, the order and the values of all outputs."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        given = with_batch(args, kwargs, batch)
        leaves = [x for x in pytree.tree_leaves(given) if isinstance(x, Tensor)]
        pairs = zip(session.get_inputs(), leaves, strict=True)
        found: Any = session.run(None, {x.name: leaf.numpy() for x, leaf in pairs})
        with torch.no_grad():
            wanted = pytree.tree_leaves(program(*given[0], **given[1]))
        for ours, theirs in zip(found, wanted, strict=True):
            # Other float32 kernels add some hundred numbers near 1 in another order; each addition
            # is off by up to 6e-8.
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-5, atol=1e-5)


@each_case
def test_a_model_of_the_zoo_runs_in_onnxruntime_at_any_batch(
    name: str, form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (_, args, kwargs), program = captured(name)
    program = FORMS[form](program).eval()
    path = export(program, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    check_runtime(program, path, args, kwargs)


def test_two_sizes_that_differ_are_both_dynamic(tmp_path: Path) -> None:
    module = net(lambda self, x, y: (self.fc(x), y * self.p), fc=nn.Linear(3, 2), p=_one())
    args = (torch.randn(4, 3), torch.randn(5, 2))
    program = fxprune.capture(module, args, batch=(0, 0)).eval()
    session = onnxruntime.InferenceSession(str(export(program, tmp_path / "net.onnx")))
    given = {
        x.name: torch.ones(n, w).numpy()
        for x, n, w in zip(session.get_inputs(), (2, 7), (3, 2), strict=True)
    }
    found: Any = session.run(None, given)
    assert [part.shape for part in found] == [(2, 2), (7, 2)]


def _one() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


@torch.library.custom_op("fxprune_onnx::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    """An operator that ONNX does not have."""
    return x * 3


@thrice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


# What torch's exporter cannot write: its reason is passed on, and nothing is left behind.
REFUSED = {
    "an operator from elsewhere": lambda self, x: thrice(x * self.p),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_onnx_cannot_hold_is_refused_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    program = fxprune.capture(net(REFUSED[case], p=_one()), (torch.ones(3, 2),)).eval()
    with pytest.raises(FormatError, match=r"net\.onnx: torch cannot write this program as \.onnx"):
        export(program, tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []
