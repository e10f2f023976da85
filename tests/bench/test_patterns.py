"""The benchmark of patterns finds what is in its graph."""

from __future__ import annotations

import pytest
from torch import fx

from fxprune.program.program import Program
from tests.bench.patterns import NODES, PATTERNS, big_graph, main, measure_pattern, owner

COUNTS = (1249, 1249, 1249, 1249, 0, 0, 2)


@pytest.fixture(scope="module")
def graph() -> fx.Graph:
    return big_graph()


@pytest.fixture(scope="module")
def program() -> Program:
    return owner()


def test_the_graph_has_as_many_nodes_as_it_says(graph: fx.Graph):
    assert len(graph.nodes) == NODES


@pytest.mark.parametrize(("text", "count"), [*zip(PATTERNS, COUNTS, strict=True)], ids=PATTERNS)
def test_each_pattern_is_found_as_often_as_it_occurs(
    graph: fx.Graph, program: Program, text: str, count: int
):
    found = measure_pattern(text, graph, program, rounds=1)
    assert (found.pattern, found.count) == (text, count)
    assert found.seconds > 0


def test_the_page_has_a_line_for_each_pattern(capsys: pytest.CaptureFixture[str]):
    main()
    assert len(capsys.readouterr().out.splitlines()) == len(PATTERNS) + 2
