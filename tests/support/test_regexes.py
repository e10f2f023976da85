"""Regular expressions in bounded time: as Python's own fit, and none takes long."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune.errors import RecipeError, SelectError
from fxprune.support.regexes import UnboundedError, check_regex, fits_anywhere, fits_at_start
from tests.tools.capture_helpers import net

TEXTS = st.text("abAB01._\n", max_size=8)
ATOMS = st.sampled_from(
    [
        *("a", "b", "A", "0", r"\.", ".", "[ab]", "[^a]", "[a-b0-9]", r"\d", r"\w", r"\W", r"\s"),
        *("^", "$", r"\b", r"\B", r"\A", r"\Z", "", r"[\w.]", "_", "(?:)", "\n"),
    ]
)


def joined(parts: Any) -> Any:
    repeat = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{,3}?"])
    return st.one_of(
        st.builds("{}{}".format, parts, parts),
        st.builds("(?:{}|{})".format, parts, parts),
        st.builds("({}){}".format, parts, repeat),
        st.builds("(?={})".format, parts),
        st.builds("(?!{})".format, parts),
        st.builds("(?<={})".format, st.sampled_from(["a", "ab", "[ab]0", "^", "(?:a|b)"])),
        st.builds("(?<!{})".format, st.sampled_from(["a", "b.", r"\d"])),
        st.builds("(?i:{})".format, parts),
        st.builds("(?s-i:{})".format, parts),
        st.builds("(?m:{})".format, parts),
    )


@given(flags=st.sampled_from(["", "(?i)", "(?s)", "(?m)", "(?x)", "(?a)"]),
       pattern=st.recursive(ATOMS, joined, max_leaves=8), text=TEXTS)  # fmt: skip
def test_a_regex_fits_where_pythons_own_does(flags: str, pattern: str, text: str) -> None:
    assert fits_anywhere(flags + pattern, text) == bool(re.search(flags + pattern, text))
    assert fits_at_start(flags + pattern, text) == bool(re.match(flags + pattern, text))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"layer[13]\..*weight$", "layer1.conv.weight", True),
        (r"^(?!.*bias)", "conv.bias", False),
        (r"(?i)CONV", "conv1.weight", True),
        (r"(?=.*conv)(?=.*weight)", "a.conv.weight", True),
        ("\u017f", "s", False),
        ("(?i)\u017f", "S", True),
        (r"\d", "\u0663", True),
        (r"(?a)\d", "\u0663", False),
        ("", "", True),
        ("(?!)", "", False),
    ],
)
def test_known_regexes(pattern: str, text: str, found: bool) -> None:
    assert fits_anywhere(pattern, text) is found
    assert bool(re.search(pattern, text)) is found


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "^(a+)+$",
            "^(a|a)*$",
            "^(a|aa)+$",
            "^(.*a){12}$",
            "a*a*a*a*a*a*a*b",
            "^(?:a?){30}a{30}$",
        ),
        *("((a*)*)*b", r"^(\w+\s?)*$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(?=(a+)+b)c"),
    ],
)
def test_no_regex_takes_long(pattern: str) -> None:
    start = time.process_time()
    check_regex(pattern)
    for length in (30, 200, 1000):
        try:
            assert not fits_anywhere(pattern, "a" * length + "!")
        except SelectError as error:
            assert length == 1000
            assert "takes too many steps" in str(error)  # noqa: PT017
    assert time.process_time() - start < 5


def test_no_regex_takes_long_on_many_names() -> None:
    start = time.process_time()
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(150)])
    rule = {"select": {"regex": ["(.*.*.*){1,400}x"] * 300}, "method": "identity"}
    program = fxprune.capture(model, (torch.ones(2, 1),))
    with pytest.raises(SelectError, match="make the regex simpler"):
        fxprune.prune(program, {"rule": [rule]})
    assert time.process_time() - start < 25


@pytest.mark.parametrize("key", ["path", "exclude", "op", "param", "ndim"])
def test_a_recipe_of_a_megabyte_of_names_takes_no_time_and_is_not_repeated(key: str) -> None:
    program = fxprune.capture(nn.Linear(1, 1), (torch.ones(2, 1),))
    names = list(range(3, 100_000)) if key == "ndim" else [f"n{at}" for at in range(100_000)]
    start = time.process_time()
    rule = {"select": {"path": ["*", "a"], key: names}, "method": "identity"}
    if key == "exclude":
        fxprune.prune(program, {"rule": [rule]})
    else:
        with pytest.raises(SelectError) as caught:
            fxprune.prune(program, {"rule": [rule]})
        assert " or " in str(caught.value)
        assert len(str(caught.value)) < 2000
    assert time.process_time() - start < 10


def test_many_names_are_many_and_globs_are_not() -> None:
    rule = {"select": ["a*"] * 1001, "method": "identity"}
    with pytest.raises(RecipeError, match="path has 1001 globs; at most 1000 are read"):
        fxprune.Recipe.from_dict({"rule": [rule]})
    assert len(fxprune.Select(path=["a"] * 5000 + ["b?"] * 1000).path) == 6000


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a)\1", "refers back to a group"),
        (r"(a)?(?(1)b|c)", "asks whether a group was found"),
        ("(?>a+)b", "has an atomic group"),
        ("a++b", "has a possessive repetition"),
        ("a" * 2001, "has 2001 characters; at most 2000 are read"),
        ("a{6000}", "has more than 5000 places"),
        ("(((a{99}){99}){99}){99}", "has more than 5000 places"),
    ],
)
def test_what_has_no_bound_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(UnboundedError, match=re.escape(why)):
        check_regex(pattern)
    rule = {"select": {"regex": pattern}, "method": "identity"}
    with pytest.raises(RecipeError) as caught:
        fxprune.Recipe.from_dict({"rule": [rule]})
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


def test_globs_take_no_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    program = fxprune.capture(*_long_names())
    start = time.process_time()
    for glob in ("*a" * 30 + "*b", "*" * 500 + "b", "[!b]*" * 50, "?*" * 300 + "b"):
        rule = {"select": {"path": glob, "exclude": glob}, "method": "identity", "optional": True}
        fxprune.prune(program, {"rule": [rule]})
    assert time.process_time() - start < 5
    rule = {"select": {"path": "a" * 2001}, "method": "identity"}
    with pytest.raises(RecipeError, match="has 2001 characters; at most 2000 are read"):
        fxprune.Recipe.from_dict({"rule": [rule]})


def _long_names() -> Any:
    import torch
    from torch import nn

    module = net(lambda self, x: getattr(self, "a" * 400)(x), **{"a" * 400: nn.Linear(2, 2)})
    return module, (torch.zeros(2, 2),)
