"""What a report says of shrinks, and the picture of channel groups."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fxprune
from fxprune.cli.app import app
from fxprune.compiler import find_coupling
from fxprune.compiler.shrinking import shrink
from fxprune.errors import FormatError
from fxprune.reports.picture import channel_graph, draw_channels, to_dot
from tests.models.coupled_nets import captured, coupled


def shrunk(name: str = "residual"):
    masked = fxprune.prune(captured(name), coupled())
    return masked, shrink(fxprune.finalize(masked))


def test_sizes_and_costs_stand_before_and_after():
    masked, small = shrunk()
    (found,) = fxprune.report(small).shrinks
    record = found.record
    assert record.before is not None
    assert record.after is not None
    assert record.before.parameters == sum(p.numel() for p in masked.parameters())
    assert record.after.parameters == sum(p.numel() for p in small.parameters())
    text = str(found)
    assert text.startswith("parameters: 2,037 -> 589 (28.9%)\nFLOPs of one example: ")
    assert found.latency == ()


def test_layers_show_old_and_new_widths():
    _, small = shrunk()
    layers = {layer.name: layer for layer in fxprune.report(small).shrinks[0].layers}
    assert layers["conv1.weight"].before == (12, 8, 3, 3)
    assert layers["conv1.weight"].after == (6, 4, 3, 3)
    assert layers["conv1.weight"].flops_before == 2 * 12 * 8 * 9 * 64
    assert layers["conv1.weight"].flops_after == 2 * 6 * 4 * 9 * 64
    assert layers["fc.weight"].after == (5, 4)
    assert "fc.bias" not in layers


def test_what_stayed_is_told_by_node_and_line():
    _, small = shrunk()
    text = str(fxprune.report(small).shrinks[0])
    assert "\nstays: 10 channels of 'fc.weight', 'fc.bias': it is an output" in text
    assert "coupled_nets.py:" in text
    assert "a convolution runs over it" not in text


def test_latency_is_measured_where_the_program_before_is_given():
    masked, small = shrunk()
    found = fxprune.report(small, before=masked).shrinks[0]
    assert [each.batch for each in found.latency] == [1, 8]
    assert "\nlatency, batch 8: " in str(found)


def test_two_shrinks_have_a_report_each():
    _, once = shrunk()
    twice = shrink(fxprune.finalize(fxprune.prune(once, coupled())))
    first, second = fxprune.report(twice).shrinks
    shapes = [
        next(layer for layer in found.layers if layer.name == "stem.weight")
        for found in (first, second)
    ]
    assert [(layer.before[0], layer.after[0]) for layer in shapes] == [(8, 4), (4, 2)]


def test_a_shrink_that_cuts_nothing_says_so():
    small = shrink(captured("residual"))
    (found,) = fxprune.report(small).shrinks
    assert found.layers == ()
    assert "nothing could be cut" in str(found)


def test_it_is_json():
    _, small = shrunk()
    data = json.loads(fxprune.report(small).to_json())["shrinks"][0]
    assert data["after"]["parameters"] == 589
    assert data["maps"][0]["kept"] == list(small.captured.shrinks[0].maps[0].kept)


# The picture


def test_the_graph_leads_from_makers_to_layers_to_readers():
    graph = channel_graph(captured("residual"), find_coupling(captured("residual")))
    assert set(graph.predecessors("layer stem.weight")) == {"stem.weight", "conv2.weight"}
    assert set(graph.successors("layer conv1.weight")) == {
        "bn1.weight",
        "bn1.bias",
        "conv2.weight",
    }
    assert "its channels stay: it is an output" in graph.nodes["fc.weight"]["text"]


def test_dot_text_is_stable():
    program = captured("dense")
    text = to_dot(channel_graph(program, find_coupling(program)))
    assert text == to_dot(channel_graph(program, find_coupling(program)))
    assert text.startswith("digraph channels {\n")
    assert '  "layer a.weight" -> "norm.weight" [label="dim 0"];\n' in text


def test_pictures_are_written_by_suffix(tmp_path: Path):
    pytest.importorskip("matplotlib")
    program = captured("residual")
    coupling = find_coupling(program)
    draw_channels(program, coupling, tmp_path / "net.dot")
    draw_channels(program, coupling, tmp_path / "net.svg")
    assert (tmp_path / "net.dot").read_text() == to_dot(channel_graph(program, coupling))
    assert "<svg" in (tmp_path / "net.svg").read_text()
    with pytest.raises(FormatError, match=r"\.dot or an \.svg"):
        draw_channels(program, coupling, tmp_path / "net.png")


def test_a_missing_matplotlib_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    program = captured("residual")
    with pytest.raises(FormatError, match="needs matplotlib; install"):
        draw_channels(program, find_coupling(program), tmp_path / "net.svg")
    assert not list(tmp_path.iterdir())


NET = """
import torch
from torch import nn


def net():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, (torch.zeros(2, 3),), {}
"""


def inspected(folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> Any:
    (folder / "net.py").write_text(NET)
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, ["inspect", "net.py:net", *args])


def test_inspect_tells_costs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = inspected(tmp_path, monkeypatch, "--picture", "net.dot")
    assert result.exit_code == 0
    assert "one example costs 40 FLOPs, 6 activations" in result.stdout
    assert "wrote net.dot" in result.stdout
    assert '"0.weight" -> "layer 0.weight"' in (tmp_path / "net.dot").read_text()


def test_inspect_tells_costs_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = inspected(tmp_path, monkeypatch, "--json")
    assert json.loads(result.stdout)["costs"] == {"flops": 40, "activations": 6, "unknown": []}


def test_a_picture_of_another_kind_is_the_callers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = inspected(tmp_path, monkeypatch, "--picture", "net.png")
    assert result.exit_code == 2
    assert not (tmp_path / "net.png").exists()
