"""Passes by name: found in every distribution, imported when used, never two of one name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fxprune.errors import PassError
from fxprune.passes.rank import Rank
from fxprune.passes.table import PASSES
from fxprune.rewrite import registry


class Entry:
    """An entry point of a distribution that need not be installed."""

    def __init__(self, name: str, table: dict[str, str]) -> None:
        self.name, self.table, self.value = name, table, f"{name}.passes:PASSES"

    def load(self) -> dict[str, str]:
        return self.table


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install entry points in the place of those that are there."""

    def replace(*entries: Entry) -> None:
        asked: list[str] = []

        def entry_points(*, group: str) -> tuple[Entry, ...]:
            asked.append(group)
            return entries

        monkeypatch.setattr(registry, "entry_points", entry_points)
        registry._installed.cache_clear()

    yield replace
    registry._installed.cache_clear()


@pytest.mark.smoke
def test_the_installed_passes_are_those_of_the_table():
    assert set(registry.names()) >= set(PASSES)
    assert list(registry.names()) == sorted(registry.names())
    assert registry.find("rank") is Rank


@pytest.mark.parametrize("name", registry.names())
def test_every_pass_can_be_imported(name: str):
    assert registry.find(name).__name__ == registry._table()[name].partition(":")[2]


def test_a_pass_is_made_with_its_options():
    assert registry.create("rank", amount=3, ties="torch") == Rank(amount=3, ties="torch")


@pytest.mark.parametrize(("name", "near"), [("ranks", "rank"), ("finalise", "finalize")])
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(name: str, near: str):
    with pytest.raises(PassError) as caught:
        registry.create(name)
    assert str(caught.value) == f"there is no pass {name!r}; did you mean {near!r}?"


def test_without_a_near_name_all_are_listed():
    with pytest.raises(PassError, match=r"no pass 'zzz'; there are adopt, .*cut, .*select"):
        registry.find("zzz")


def test_options_that_a_pass_does_not_take_are_an_error():
    with pytest.raises(PassError, match=r"the pass 'rank'.*unexpected keyword argument 'share'"):
        registry.create("rank", share=0.5)
    with pytest.raises(PassError, match=r"the pass 'rank'.*missing .*'amount'"):
        registry.create("rank")


def test_another_distribution_adds_passes(install: Any):
    install(Entry("fxprune", PASSES), Entry("mine", {"my-rank": "fxprune.passes.rank:Rank"}))
    assert registry.find("my-rank") is Rank
    assert registry.names() == tuple(sorted([*PASSES, "my-rank"]))


def test_nothing_is_imported_before_it_is_used(install: Any):
    install(Entry("mine", {"broken": "no.such.module:Pass", "rank": PASSES["rank"]}))
    assert registry.find("rank") is Rank
    with pytest.raises(PassError, match=r"'broken' cannot be imported from no\.such\.module:Pass"):
        registry.find("broken")


def test_a_class_that_is_not_in_its_module_is_an_error(install: Any):
    install(Entry("mine", {"gone": "fxprune.passes.rank:Gone"}))
    with pytest.raises(PassError, match=r"'gone' cannot be imported .*Gone"):
        registry.create("gone")


def test_two_passes_of_one_name_are_an_error(install: Any):
    install(Entry("fxprune", PASSES), Entry("mine", {"rank": "mine.passes:Rank"}))
    with pytest.raises(PassError) as caught:
        registry.find("select")
    assert str(caught.value) == (
        "two passes are called 'rank': fxprune.passes.rank:Rank and mine.passes:Rank (entry point "
        "'mine'); rename or uninstall one"
    )


def test_the_same_pass_twice_is_no_clash(install: Any):
    install(Entry("fxprune", PASSES), Entry("again", PASSES))
    assert registry.names() == tuple(sorted(PASSES))


def test_without_any_passes_the_mend_is_told(install: Any):
    install()
    with pytest.raises(PassError, match=r"no passes are installed \(entry-point group 'fxprune"):
        registry.find("rank")


def test_a_stranger_that_cannot_be_loaded_stops_only_its_own_passes(install: Any):
    class Broken(Entry):
        def load(self) -> dict[str, str]:
            raise ImportError("no module named 'gone'")

    install(Entry("fxprune", PASSES), Broken("mine", {}))
    assert registry.find("rank") is Rank
    with pytest.raises(PassError, match=r"(?s)no pass 'other'.*mine.passes:PASSES cannot be.*gone"):
        registry.find("other")
