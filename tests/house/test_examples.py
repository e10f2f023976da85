"""Each example runs, and finds what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples import compile_time, fine_tuning, pruning_tutorial, sentence_encoder, shrinking

pytestmark = pytest.mark.thorough  # each is a whole program

FOLDER = Path(__file__).parents[2] / "examples"


def test_every_section_of_the_tutorial_agrees_with_torch(capsys: pytest.CaptureFixture[str]):
    assert pruning_tutorial.main() == [
        "inspect a module",
        "prune entries",
        "prune again",
        "save and load",
        "make it permanent",
        "prune many",
        "prune globally",
        "use your own method",
    ]
    printed = capsys.readouterr().out
    assert "\nSparsity in conv1.weight: " in printed
    assert "\nGlobal sparsity: 20.00%\n" in printed


def test_the_tutorial_notices_a_difference():
    pair = pruning_tutorial.Pair.of_lenet()
    pair.program.conv1.bias.data[0] += 1
    with pytest.raises(RuntimeError, match="here: tensors of the state dict differ"):
        pair.check("here")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_programs_equal_eager_ones(backend: str, capsys: pytest.CaptureFixture[str]):
    found = compile_time.main(["--backend", backend])
    assert found == {"masked": 0.0, "finalized": 0.0}
    assert "\nsame: kept on " in capsys.readouterr().out


@pytest.mark.thorough
def test_inductor_takes_programs_whole():
    found = compile_time.main([])
    assert set(found) == {"masked", "finalized"}


def test_zeros_stay_while_masked_and_grow_after(capsys: pytest.CaptureFixture[str]):
    outcome = fine_tuning.main(steps=20)
    zeros, accuracy = outcome.zeros, outcome.accuracy
    assert zeros["dense"] == 0
    assert zeros["pruned"] == zeros["fine-tuned while masked"] == zeros["finalized"] > 4000
    assert zeros["one step after finalize"] < zeros["finalized"]
    assert accuracy["finalized"] == accuracy["fine-tuned while masked"] > accuracy["pruned"]
    assert "\nWARNING: " in capsys.readouterr().out
    assert "WARNING" in (fine_tuning.__doc__ or "")


def test_the_sentence_encoder_keeps_its_embeddings():
    outcome = sentence_encoder.main()
    assert outcome.weights == 10_616_832
    assert outcome.sparsity == pytest.approx(0.3, abs=1e-6)  # the count is a whole number
    assert outcome.cosines.min() > 0.85
    assert outcome.cosines.max() < 1.0


def test_an_example_runs_as_a_script():
    command = [sys.executable, "-W", "error", str(FOLDER / "pruning_tutorial.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_every_example_is_listed_and_tested():
    scripts = {path.name for path in FOLDER.glob("*.py")}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in scripts if f"({name})" not in page] == []
    here = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in scripts if f"{name.removesuffix('.py')}.main(" not in here] == []


def test_a_shrunk_model_is_smaller_and_learns_on(capsys: pytest.CaptureFixture[str]):
    outcome = shrinking.main(dense_epochs=2, more_epochs=1)
    assert outcome.parameters["shrunk"] < 0.3 * outcome.parameters["dense"]
    assert outcome.parameters["masked"] == outcome.parameters["dense"]
    # float32 sums over fewer addends, of outputs about 10
    assert outcome.difference < 1e-4
    accuracy = outcome.accuracy
    assert accuracy["shrunk"] == accuracy["fine-tuned while masked"] > accuracy["masked"]
    assert accuracy["shrunk, fine-tuned"] > 0.8
    assert "\nblocks.0.conv1.weight  32x32x3x3  16x16x3x3" in capsys.readouterr().out
