"""The matcher finds what trying everything finds, on drawn graphs and patterns."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxprune import functional as prune
from fxprune.program.program import Program
from fxprune.rewrite.matching import Search, match, matches
from fxprune.rewrite.pattern import Match, Refusal, parse
from tests.tools.brute_force import Bindings, all_bindings, key_of
from tests.tools.helpers import program
from tests.tools.pattern_strategies import build_graph, graphs, patterns


@cache
def masked() -> Program:
    return prune.identity(program("mlp"), "0.weight")


def keyed(found: Match) -> Bindings:
    return frozenset((name, key_of(name, value)) for name, value in found.bindings.items())


def check(data: st.DataObject) -> None:
    graph = build_graph(data.draw(graphs()))
    pattern, _ = data.draw(patterns(graph))
    assert parse(str(pattern)) == pattern
    ends: list[Any] = []
    for node in graph.nodes:
        expected = all_bindings(pattern, node)
        ways = list(Search(masked()).ways(pattern, node))
        assert {keyed(way) for way in ways if isinstance(way, Match)} == expected, (node, pattern)
        found = match(pattern, node, masked())
        assert isinstance(found, Match) == bool(expected)
        if isinstance(found, Match):
            assert keyed(found) in expected
            ends.append(node)
        else:
            assert isinstance(found, Refusal)
            assert found.reason
            assert found.node is not None
    assert [found.node for found in matches(pattern, graph, masked())] == ends


@given(st.data())
def test_the_matcher_finds_what_trying_everything_finds(data: st.DataObject):
    check(data)


@pytest.mark.thorough
@settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data())
def test_two_thousand_graphs_and_patterns(data: st.DataObject):
    check(data)
