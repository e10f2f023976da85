"""verify: a promise kept is certified, a planted difference is found and named, nothing changes."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import InputError, PassError, PassTypeError
from fxprune.program.program import Program
from fxprune.testing.comparing import is_same
from fxprune.verification.certificate import Certificate, Failure
from fxprune.verification.comparison import verify
from fxprune.verification.differences import Holder, largest_gap
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import program_of

MODELS = ["residual_cnn", "stochastic_depth", "aux_head", "transformer_encoder", "kwargs_dict"]
RECIPE = {"rule": [{"select": {"ndim": [2, 4]}, "method": "l1_unstructured", "amount": 0.5}]}


def changed(program: Program, name: str, by: float) -> Program:
    """A copy in which the last entry of a parameter or buffer is larger."""
    other = copy.deepcopy(program)
    tensors: dict[str, Tensor] = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    tensors[name].data.view(-1)[-1] += by
    return other


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("no such number\nand more lines")


class Given(nn.Module):
    """Gives what it was made with, whatever the input."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = [output]

    def forward(self, x: Tensor) -> Any:
        return self.output[0]


def compared(after: Any, before: Any, **options: Any) -> Certificate:
    """The certificate of two outputs."""
    return verify(Given(after), Given(before), (torch.ones(1),), **options)


# A promise that is kept


@pytest.mark.parametrize("name", MODELS)
def test_a_program_is_the_same_as_its_source_on_given_and_drawn_inputs(name: str) -> None:
    model, args, kwargs = ZOO[name]()
    certificate = verify(fxprune.capture(model, args, kwargs), model, args, kwargs)
    assert certificate.ok
    assert certificate.failures == ()
    assert certificate.trials == 8  # one given and three drawn, in two modes
    assert certificate.largest == 0.0
    assert {text.partition(":")[0] for text in certificate.inputs} == {"train", "eval"}
    assert "eval: drawn with batch 1 and seed 0" in certificate.inputs
    assert "train: drawn with batch 6 and seed 2" in certificate.inputs


@pytest.mark.parametrize("promise", ["same", "close"])
@pytest.mark.parametrize("name", MODELS)
def test_a_finalized_program_is_the_same_as_the_masked_one(name: str, promise: str) -> None:
    masked = fxprune.prune(program_of(name), RECIPE)
    assert verify(fxprune.finalize(masked), masked, promise=promise).ok


@pytest.mark.smoke
def test_models_that_torch_pruned_are_compared_though_deepcopy_refuses_them() -> None:
    model, args, _ = ZOO["lenet"]()
    torch_prune.l1_unstructured(model.get_submodule("conv1"), "weight", amount=0.5)
    assert verify(fxprune.capture(model, args), model, args).ok


def test_a_tensor_stands_for_args() -> None:
    model = nn.Linear(2, 1)
    assert verify(copy.deepcopy(model), model, torch.ones(3, 2)).trials == 2


def test_zero_trials_compare_the_given_input_alone() -> None:
    model, args, _ = ZOO["lenet"]()
    program = fxprune.capture(model, args)
    assert verify(program, model, args, trials=0).inputs == (
        "eval: the given input",
        "train: the given input",
    )


def test_another_seed_draws_other_inputs() -> None:
    program = program_of("lenet")
    assert verify(program, program, trials=1, seed=7).inputs == (
        "eval: drawn with batch 1 and seed 7",
        "train: drawn with batch 2 and seed 7",
    )


def test_neither_side_nor_the_generator_changes() -> None:
    model, args, _ = ZOO["residual_cnn"]()
    program = fxprune.capture(model, args).eval()
    before = [copy.deepcopy(side.state_dict()) for side in (model, program)]
    kept, state = args[0].clone(), torch.get_rng_state()
    assert verify(program, model, args).ok
    assert is_same([model.state_dict(), program.state_dict()], before)
    assert model.training
    assert not program.training
    assert is_same(args[0], kept)
    assert torch.equal(torch.get_rng_state(), state)


# Differences


@pytest.mark.parametrize("promise", ["same", "close"])
def test_a_changed_weight_is_found_and_its_node_named(promise: str) -> None:
    program = program_of("lenet")
    certificate = verify(changed(program, "conv2.bias", 0.25), program, promise=promise)
    assert not certificate
    assert len(certificate.failures) == certificate.trials == 6
    failure = certificate.failures[0]
    assert (failure.mode, failure.input) == ("eval", "drawn with batch 1 and seed 0")
    assert (failure.output, failure.node) == ("output", "conv2_bias")
    assert "the parameter 'conv2.bias'" in failure.message
    assert failure.difference is not None
    assert 0 < failure.difference <= certificate.largest


def test_the_largest_difference_is_exact() -> None:
    program = program_of("lenet")
    with torch.no_grad():
        program.get_parameter("fc3.bias").zero_()
        program.get_parameter("fc3.weight").zero_()
    certificate = verify(changed(program, "fc3.bias", 0.25), program)
    assert {failure.difference for failure in certificate.failures} == {0.25}
    assert certificate.largest == 0.25


def test_a_changed_mask_is_found_at_the_product() -> None:
    masked = fxprune.prune(program_of("lenet"), RECIPE)
    other = copy.deepcopy(masked)
    other.masks["fc2.weight"].zero_()
    failure = verify(other, masked, trials=1).failures[0]
    assert "the parameter 'fc2.weight'" in failure.message


def test_a_difference_between_operators_is_named() -> None:
    program = program_of("lenet")
    other = copy.deepcopy(program)
    for node in other.graph.nodes:
        if node.name == "relu_2":
            node.target = torch.ops.aten.sigmoid.default
    other.recompile()
    failure = verify(other, program, trials=1).failures[0]
    assert failure.node == "relu_2"
    assert "relu_2 (aten.sigmoid.default" in failure.message


def test_what_differs_in_one_mode_only_fails_in_that_mode() -> None:
    program = program_of("aux_head")
    certificate = verify(changed(program, "aux.0.bias", 0.25), program)
    assert {failure.mode for failure in certificate.failures} == {"train"}
    assert {failure.output for failure in certificate.failures} == {"output[1]"}


def test_batch_statistics_are_compared_after_a_step() -> None:
    program = program_of("residual_cnn")
    certificate = verify(changed(program, "block1.bn1.num_batches_tracked", 1), program, trials=1)
    (failure,) = certificate.failures
    assert failure.mode == "train"
    assert failure.output == "buffer 'block1.bn1.num_batches_tracked'"
    assert failure.difference == 1.0
    assert certificate.largest == 0.0


def test_signs_of_zeros_differ_in_bits_and_not_by_much() -> None:
    after, before = torch.tensor([-0.0, 1.0]), torch.tensor([0.0, 1.0])
    failure = compared(after, before).failures[0]
    assert failure.difference == 0.0
    assert failure.message == "output differs in the bits of zeros or NaN only"
    assert compared(after, before, promise="close").ok


def test_nan_equals_nan_and_no_number() -> None:
    nan = torch.tensor([math.nan, 1.0])
    assert compared(nan, nan.clone()).ok
    assert compared(nan, nan.clone(), promise="close").ok
    assert compared(nan, torch.ones(2), promise="close").failures[0].difference == math.inf


@pytest.mark.parametrize(
    ("after", "before", "message"),
    [
        (torch.ones(2), torch.ones(3), "output is float32[2] after and float32[3] before"),
        (torch.ones(2), torch.ones(2).int(), "output is float32[2] after and int32[2] before"),
        (
            {"a": torch.ones(1)},
            [torch.ones(1)],
            "output is nested otherwise: {'a': *} after, [*] before",
        ),
        ([1, None], [2, None], "output[0] is 1 after and 2 before"),
        ({"a": 1}, {"a": 1.0}, "output['a'] is 1 after and 1.0 before"),
    ],
)
def test_differences_in_kind_are_failures(after: Any, before: Any, message: str) -> None:
    failure = compared(after, before).failures[0]
    assert failure.message == message
    assert failure.difference == math.inf


def test_close_holds_sums_in_another_order_and_same_does_not() -> None:
    class Sum(nn.Module):
        def __init__(self, backwards: bool) -> None:
            super().__init__()
            self.backwards = backwards

        def forward(self, x: Tensor) -> Tensor:
            total = torch.zeros_like(x[0])
            for row in x.flip(0) if self.backwards else x:
                total = total + row
            return total

    generator = torch.Generator().manual_seed(0)
    args = (torch.randn(1000, 8, generator=generator, dtype=torch.float64),)
    assert not verify(Sum(True), Sum(False), args).ok
    certificate = verify(Sum(True), Sum(False), args, promise="close")
    assert certificate.ok
    # 1000 additions of numbers below 100 in float64 err by less than 1000 * 100 * 2**-53.
    assert 0 < certificate.largest < 1.2e-11


def test_close_finds_one_rounding_of_a_weight() -> None:
    program = program_of("lenet")
    other = copy.deepcopy(program)
    weight = other.get_parameter("fc3.bias")
    weight.data = torch.nextafter(weight.data, torch.tensor(math.inf))
    assert not verify(other, program, promise="close").ok


def test_the_bound_grows_with_the_numbers_compared() -> None:
    after, before = torch.tensor([2.0e6, 1.0]), torch.tensor([2.0e6, 1.5])
    assert compared(after, before, promise="close", bound=2.6e-7).ok
    assert not compared(after, before, promise="close", bound=2.4e-7).ok
    assert not compared(after / 2e6, before / 2e6, promise="close", bound=0.0).ok


# Models that raise


def test_a_side_that_raises_is_a_failure() -> None:
    model = nn.Linear(2, 2)
    certificate = verify(Raises(), model, (torch.ones(1, 2),))
    assert [failure.message for failure in certificate.failures] == [
        "after raises ArithmeticError: no such number; before runs"
    ] * 2
    assert certificate.failures[0].difference is None
    assert "before raises ArithmeticError" in str(verify(model, Raises(), (torch.ones(1, 2),)))


def test_a_given_input_that_no_side_takes_is_a_failure() -> None:
    model = nn.Linear(2, 2)
    failure = verify(model, model, (torch.ones(1, 3),)).failures[0]
    assert failure.message.startswith("after raises RuntimeError: ")
    assert "; before raises RuntimeError: " in failure.message


def test_drawn_inputs_that_no_side_takes_are_skipped_but_not_all_of_them() -> None:
    program = fxprune.capture(nn.Embedding(3, 2), (torch.tensor([0, 1, 2]),))
    spec = program.captured.inputs
    beyond = replace(spec.inputs[0], low=5, high=9)
    program.captured.inputs = replace(spec, inputs=(beyond,))
    certificate = verify(program, program)
    assert certificate.trials == 0
    assert len(certificate.skipped) == 6
    assert [failure.input for failure in certificate.failures] == ["every input"] * 2
    assert not certificate
    mended = verify(program, program, (torch.tensor([0, 1, 2]),))
    assert mended.ok
    assert mended.trials == 2


# What is asked


def test_bad_requests_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="give args="):
        verify(model, model)
    with pytest.raises(InputError, match="trials= of 1 or more"):
        verify(program_of("lenet"), model, trials=0)
    with pytest.raises(PassError, match="promise='equal' is unknown; give 'same' or 'close'"):
        verify(model, model, (), promise="equal")
    with pytest.raises(PassError, match="trials=-1"):
        verify(model, model, (), trials=-1)
    with pytest.raises(PassError, match="'evil' is no mode; there are 'eval' and 'train'"):
        verify(model, model, (), trials={"evil": 3})
    with pytest.raises(PassError, match="'test' is no mode"):
        verify(model, model, (), modes=("eval", "test"))
    with pytest.raises(PassError, match="modes='eval' are no modes; give a tuple"):
        verify(model, model, (), modes="eval")  # pyright: ignore[reportArgumentType]
    with pytest.raises(PassError, match=r"trials=2\.5 is no count in eval mode"):
        verify(model, model, (), trials={"eval": 2.5})  # pyright: ignore[reportArgumentType]
    with pytest.raises(PassError, match="bound=nan"):
        verify(model, model, (), bound=math.nan)
    with pytest.raises(PassTypeError, match="after is a str"):
        verify("model", model, ())  # pyright: ignore[reportArgumentType]


def test_a_certificate_is_data() -> None:
    program = program_of("lenet")
    certificate = verify(changed(program, "fc3.bias", math.inf), program, trials=1)
    data = json.loads(certificate.to_json())
    assert data["ok"] is False
    assert (data["promise"], data["bound"], data["seed"], data["trials"]) == ("same", 0.0, 0, 2)
    assert data["largest"] == "inf"
    assert data["failures"][0]["node"] == "fc3_bias"
    assert data["failures"][0]["difference"] == "inf"
    assert str(certificate).splitlines()[0] == "same: kept on 0 of 2 trials, largest difference inf"
    with pytest.raises(AttributeError):
        certificate.failures[0].node = None  # pyright: ignore[reportAttributeAccessIssue]


def test_the_same_request_gives_the_same_certificate() -> None:
    program = program_of("transformer_encoder")
    other = changed(program, "head.bias", 0.5)
    assert verify(other, program).to_json() == verify(other, program).to_json()


def test_a_failure_reads_as_a_sentence() -> None:
    failure = Failure("train", "the given input", "output", 0.5, "output differs by up to 0.5")
    assert str(failure) == "train mode, the given input: output differs by up to 0.5"


def test_gaps_of_integers_booleans_complex_and_nothing() -> None:
    assert largest_gap(torch.tensor([3, 5]), torch.tensor([3, 9])) == 4.0
    assert largest_gap(torch.tensor([True]), torch.tensor([False])) == 1.0
    assert largest_gap(torch.tensor([3 + 4j]), torch.tensor([0j])) == 5.0
    assert largest_gap(torch.ones(0), torch.ones(0)) == 0.0
    assert not Holder(None).leaves("x", torch.ones(0), torch.ones(0)).text


def test_each_mode_may_draw_another_number_of_inputs() -> None:
    program = fxprune.capture(nn.Linear(3, 2), (torch.zeros(2, 3),))
    found = verify(program, nn.Linear(3, 2), trials={"eval": 2, "train": 1})
    assert found.inputs == (
        "eval: drawn with batch 1 and seed 0",
        "eval: drawn with batch 3 and seed 1",
        "train: drawn with batch 2 and seed 0",
    )
    with pytest.raises(PassError, match="trials=-1 is negative in train mode"):
        verify(program, program, trials={"eval": 1, "train": -1})
