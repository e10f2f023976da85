"""`check_pass`: good passes pass, each planted fault is told with a script that shows it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from fxprune.errors import FxpruneError
from fxprune.passes.fold_masks import FoldMasks, UnmaskParameters
from fxprune.passes.magnitude import ScoreMagnitude
from fxprune.passes.random import ScoreRandom
from fxprune.testing.architecture import Activation, Arch, Attention, Linear, Norm, Residual
from fxprune.testing.comparing import DifferenceError
from fxprune.testing.drawing import DrawnProgram
from fxprune.testing.pass_checks import Checked, check_pass, simplest
from fxprune.testing.searching import simplest_failure
from tests.testing import planted
from tests.tools.profiles import thorough_but

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party"
# One network, so that capture, which takes most of the time, runs once.
RUN = st.just(Arch("features", 2, (Linear(3), Activation("relu"), Activation("relu"))))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The third party's passes, from the example's folder."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.startswith("fxprune_example")]:
        del sys.modules[name]


def script_of(error: DifferenceError) -> str:
    return str(error).partition("The simplest network that shows it:\n\n")[2]


@pytest.mark.thorough
def test_the_third_partys_pass_and_score_pass(example: Any):
    found = check_pass(example("fxprune_example.repeats").DropRepeats, max_examples=20)
    assert found.edits > 0
    names = {"promise", "pure", "frozen", "idempotent", "transactional"}
    assert found.checks == dict.fromkeys(names, 20)
    score = example("fxprune_example.relative").ScoreRelative
    assert set(check_pass(score, max_examples=5).checks) == {"promise", "pure", "frozen", "scores"}


SMALLEST = """
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.{first}(),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.layers(x)


torch.manual_seed(0)
model = Network()
with torch.no_grad():
    for p in model.parameters():
        p.copy_(torch.randn(p.shape) * 0.7)
args, kwargs = (torch.randn(3, 1),), {{}}
program = fxprune.capture(model, args, kwargs)
fxprune.testing.assert_promise(program, DropAny(ops=('abs', 'ceil', 'floor', 'relu')))
"""


@pytest.mark.thorough
def test_a_fault_in_a_copy_of_it_is_told_as_two_layers():
    with pytest.raises(DifferenceError) as caught:
        check_pass(planted.DropAny)
    told = str(caught.value)
    assert told.startswith("the pass 'drop-any' fails the check 'promise': ")
    assert "promised equal outputs" in told
    script = script_of(caught.value)
    # Whichever function was drawn in front of relu; not relu itself, after which relu is too much.
    assert any(SMALLEST.format(first=name) in script for name in ("GELU", "Tanh"))
    with pytest.raises(DifferenceError, match="promised equal outputs"):
        exec(script, {})


FAULTS: dict[type[Any], tuple[str, str]] = {
    planted.ChangesTensors: ("pure", "changed the caller's Program"),
    planted.Counts: ("pure", "another run of counts gives another Program"),
    planted.DrawsAnyway: ("pure", "the global generator of torch was drawn from"),
    planted.EditsFacts: ("frozen", "put another Selection"),
    planted.MasksHalfway: ("promise", "past its mask"),
    planted.NotFrozen: ("frozen", "NotFrozen is no frozen dataclass"),
    planted.ScoreHalf: ("scores", "living units"),
    planted.ScoreSigned: ("scores", "is not that of l1_unstructured"),
    planted.Wraps: ("idempotent", "a second run of wraps makes"),
    planted.WritesAndMasks: ("pure", "changed the caller's Program"),
}


@pytest.mark.parametrize(
    "step",
    thorough_but([planted.MasksHalfway, planted.ScoreHalf], FAULTS),
    ids=lambda step: step.__name__,
)
def test_each_fault_is_told_and_its_script_shows_it(step: Any):
    check, told = FAULTS[step]
    with pytest.raises(DifferenceError) as caught:
        check_pass(step, networks=RUN, max_examples=4)
    message = str(caught.value)
    assert message.startswith(f"the pass {step.name!r} fails the check {check!r}: ")
    assert told in message
    script = script_of(caught.value)
    compile(script, "script", "exec")
    with pytest.raises(AssertionError, match=told):
        exec(script, {})


@pytest.mark.thorough
def test_a_crash_is_told_with_its_layer():
    networks = st.just(
        Arch("sequence", 4, (Linear(6), Residual(Attention(2)), Norm("layer"), Activation("relu")))
    )
    with pytest.raises(DifferenceError) as caught:
        check_pass(planted.CrashesOnNorms, networks=networks, max_examples=2)
    assert "fails the check 'promise': KeyError: 'layer_norm'" in str(caught.value)
    script = script_of(caught.value)
    assert "        self.layers = nn.Sequential(\n            nn.LayerNorm(1),\n        )" in script
    with pytest.raises(KeyError, match="layer_norm"):
        exec(script, {})


def test_a_pass_that_edits_nothing_is_no_success():
    with pytest.raises(DifferenceError, match=r"edited none of 3 .*\n  refused: it takes nothing"):
        check_pass(planted.RefusesAll, networks=RUN, max_examples=3)


def test_fxprunes_own_passes_pass():
    assert check_pass(FoldMasks, max_examples=6).edits > 0
    refused = check_pass(UnmaskParameters(("layers.0.weight",)), networks=RUN, max_examples=10)
    assert refused.refused
    assert refused.edits > 0
    magnitude = check_pass(
        ScoreMagnitude(), networks=RUN, max_examples=4, torch_method="l1_unstructured"
    )
    assert magnitude.checks["scores"] == 4


@pytest.mark.thorough
def test_a_score_may_draw_if_it_says_so():
    step = ScoreRandom(amount=0.5, scope="local", seed=None)
    check_pass(step, networks=RUN, random=True, max_examples=3)
    with pytest.raises(DifferenceError, match="generator of torch was drawn from"):
        check_pass(step, networks=RUN, max_examples=3)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("finalize", "'finalize' is no pass; give a Rewrite"),
        (ScoreRandom, "ScoreRandom needs options"),
        (int, "0 is no pass"),
    ],
)
def test_what_is_no_pass_is_refused(step: Any, told: str):
    with pytest.raises(FxpruneError, match=told):
        check_pass(step)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    check_pass(FoldMasks, networks=RUN, max_examples=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_checked_prints():
    found = Checked("it", {"promise": 1, "pure": 2}, {"too small": 1}, edits=4)
    assert str(found).splitlines() == [
        "it: 3 checks, 4 edits",
        "  promise: 1 case",
        "  pure: 2 cases",
        "  refused 1 case: too small",
    ]


def test_the_simplest_failure_is_found():
    def check(value: int) -> None:
        if value >= 10:
            raise ValueError("too large")

    found = simplest_failure(st.integers(0, 1000), check, max_examples=50, start=0)
    assert found is not None
    assert (found.value, str(found.error)) == (10, "too large")
    assert simplest_failure(st.integers(0, 9), check, max_examples=50, start=0) is None


def test_a_failure_now_and_then_is_still_told():
    seen: list[int] = []

    def check(value: int) -> None:
        seen.append(value)
        if len(seen) == 3:
            raise ValueError("once")

    found = simplest_failure(st.integers(), check, max_examples=20, start=0)
    assert found is not None
    assert str(found.error) == "once"


def test_a_network_is_reduced_to_what_fails():
    arch = Arch(
        "image", 5, (Norm("batch"), Residual(Residual(Norm("group"))), Activation("relu")), seed=7
    )
    found = simplest(DrawnProgram(arch), lambda case: "group" in repr(case))
    assert found == DrawnProgram(Arch("features", 1, (Norm("group"),)))
