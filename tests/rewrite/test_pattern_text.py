"""The pattern language as text: what it reads, what it points at, and how much of it."""

from __future__ import annotations

import time
import warnings

import pytest

from fxprune.errors import RecipeError
from fxprune.rewrite.pattern import (
    Anything,
    Call,
    Constant,
    Either,
    Listed,
    Name,
    Pattern,
    calls_around,
    capitals,
    operators,
    parse,
)

X, W = Name("x"), Name("W")
RELU = Call("relu", (X,), ())

PARSED: list[tuple[str, Pattern]] = [
    ("(relu|gelu)(x)", Call("relu|gelu", (X,), ())),
    ("relu|gelu(x)", Call("relu|gelu", (X,), ())),
    ("relu | gelu|silu (x)", Call("relu|gelu|silu", (X,), ())),
    ("(relu|relu)(x)", RELU),
    ("relu(x) | W", Either((RELU, W))),
    ("W | relu(x)", Either((W, RELU))),
    ("relu(x) | gelu|silu(x)", Either((RELU, Call("gelu|silu", (X,), ())))),
    ("relu(x) | x", Either((RELU, X))),
    ("(relu(x))", RELU),
    ("f(dim=-1|3)", Call("f", (), (("dim", Either((Constant(-1), Constant(3)))),))),
    ("neg(relu|gelu(x))", Call("neg", (Call("relu|gelu", (X,), ()),), ())),
    ("relu(x)!", Call("relu", (X,), (), shared=True)),
    ("neg(relu(x) !)", Call("neg", (Call("relu", (X,), (), shared=True),), ())),
    ("(relu|gelu)(x)!", Call("relu|gelu", (X,), (), shared=True)),
    ("neg(relu(x)!)!", Call("neg", (Call("relu", (X,), (), True),), (), True)),
    ("f(x, '!)*')", Call("f", (X, Constant("!)*")), ())),
    ("cat([*, relu(x)])", Call("cat", (Listed((RELU,), 0),), ())),
    ("cat([x, * , W], dim=1)", Call("cat", (Listed((X, W), 1),), (("dim", Constant(1)),))),
    ("cat([x, *])", Call("cat", (Listed((X,), 1),), ())),
    ("cat([ * ])", Call("cat", (Listed((), 0),), ())),
    ("cat([])", Call("cat", (Listed(()),), ())),
    ("f(stride=(2, -1))", Call("f", (), (("stride", Listed((Constant(2), Constant(-1)))),))),
    ("f((1,), *)", Call("f", (Listed((Constant(1),)),), ())),
    ("_(x)", Call("_", (X,), ())),
    ("relu(  # é, and (what not)! it's\n  x\n)\n", RELU),
    ("\trelu(\r\n\tx)", RELU),
    ("f(_x, été)", Call("f", (Name("_x"), Name("été")), ())),
    ("f(_)", Call("f", (Anything(),), ())),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("text", "pattern"), PARSED, ids=[text for text, _ in PARSED])
def test_a_pattern_parses_to_data(text: str, pattern: Pattern):
    assert parse(text) == pattern


@pytest.mark.parametrize("text", [text for text, _ in PARSED])
def test_a_pattern_prints_as_it_parses(text: str):
    assert parse(str(parse(text))) == parse(text)


WANTED = "expected a name, a constant or operator(...)"
MARKED = "`!` follows a call, as in relu(...)!"
ONCE = "`*` stands in a list once: it takes all the others"
LAST = "`*` comes last: it takes the rest"
NOTHING = "this is not an expression"
BARE_CALL = "a bare name before `|` belongs to a call: relu|gelu(...)"
BARE = "a bare name fits anything: a pattern after it is never needed"
FAULTS: list[tuple[str, str, str]] = [
    ("flatten(x, -True)", WANTED, "           ^"),
    ("f(-None)", WANTED, "  ^"),
    ("f(+1)", WANTED, "  ^"),
    ("f(1j)", WANTED, "  ^"),
    ("f(b'a')", WANTED, "  ^"),
    ("f(...)", WANTED, "  ^"),
    ("f(x, *args)", WANTED, "     ^"),
    ("f(x, a if b else c)", WANTED, "     ^"),
    ("f([x for x in y])", WANTED, "  ^"),
    ("f(x & y)", WANTED, "  ^"),
    ("(a.b|c)(x)", WANTED, " ^"),
    ("('é', a.b)", WANTED, "      ^"),
    ("f('日本', é, a.b)", WANTED, "           ^"),
    ("f(x!)", MARKED, "   ^"),
    ("!relu(x)", MARKED, "^"),
    ("relu(x)!!", MARKED, "        ^"),
    ("(relu(x))!", MARKED, "         ^"),
    ("f(x) != g(x)", MARKED, "     ^"),
    ("cat([*, x, *])", ONCE, "           ^"),
    ("f(*, x)", LAST, "  ^"),
    ("f(x*)", NOTHING, "    ^"),
    ("f(dim=*)", NOTHING, "      ^"),
    ("f(**more)", "`**` is not part of the language", "  ^"),
    ("f(x, x=1, x=2)", "the argument x is given twice", "          ^"),
    ("f(relu|W)", BARE_CALL, "  ^"),
    ("relu|gelu", BARE, "^"),
    ("f(relu(x) | a | b)", BARE, "            ^"),
    ("   f(a.b)", WANTED, "     ^"),
    ("f(é x)", NOTHING, "  ^"),
    ("f('a)", NOTHING, "  ^"),
    ("f(\\x)", "'\\\\' is not part of the language", "  ^"),
]


@pytest.mark.parametrize(("text", "what", "caret"), FAULTS, ids=[text for text, _, _ in FAULTS])
def test_a_fault_is_pointed_at(text: str, what: str, caret: str):
    with pytest.raises(RecipeError) as caught:
        parse(text)
    head, shown, under = str(caught.value).split("\n")
    assert head == f"pattern: {what}"
    assert (shown, under) == (f"  {text}", f"  {caret}")


def test_the_line_with_the_fault_is_shown():
    with pytest.raises(RecipeError) as caught:
        parse("\nrelu(\n  # the input\n  conv2d(é, a.b),\n)\n", where="match")
    assert str(caught.value).split("\n") == [
        f"match: {WANTED} (line 4)",
        "    conv2d(é, a.b),",
        "              ^",
    ]


def test_of_a_long_line_the_neighbourhood_is_shown():
    with pytest.raises(RecipeError) as caught:
        parse(f"f({'x, ' * 100}a.b, {'x, ' * 100})")
    _, shown, under = str(caught.value).split("\n")
    assert shown[under.index("^") :].startswith("a.b, x, ")
    assert shown.startswith("  ...")
    assert shown.endswith("...")
    assert len(shown) < 140


def test_what_does_not_print_is_shown_escaped():
    with pytest.raises(RecipeError) as caught:
        parse("f(\x1b[2J)")
    assert str(caught.value).split("\n")[1:] == ["  f(\\x1b[2J)", "    ^"]


def test_python_does_not_warn_of_a_pattern():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(RecipeError):
            parse("f(1if 2else 3)")
    assert seen == []


DEEP = "f(" * 5000 + ")" * 5000
BOUNDED: list[tuple[str, str]] = [
    ("x" * 2**20, "the pattern has 1048576 characters; at most 4096 are read"),
    (DEEP, "the pattern has 15000 characters; at most 4096 are read"),
    ("f(" * 40 + "x" + ")" * 40, "it is nested too deeply; at most 32 levels"),
    ("f(" * 1000 + "x" + ")" * 1000, "it is nested too deeply; at most 32 levels"),
    ("-" * 4000 + "1", "it is nested too deeply; at most 32 levels"),
    ("[" * 100 + "]" * 100, "it is nested too deeply; at most 32 levels"),
    (f"f({'_,' * 300})", "it has too many parts; at most 256"),
    ("|".join(["f(x)"] * 300), "it has too many parts; at most 256"),
]


@pytest.mark.parametrize(("text", "what"), BOUNDED, ids=range(len(BOUNDED)))
def test_what_is_too_much_is_a_fault_at_once(text: str, what: str):
    start = time.process_time()
    with pytest.raises(RecipeError, match=f"^pattern: {what}"):
        parse(text)
    assert time.process_time() - start < 1.0


def test_levels_and_parts_up_to_the_limit_are_read():
    assert isinstance(parse("f(" * 31 + "x" + ")" * 31), Call)
    assert isinstance(parse(f"f({'_,' * 255})"), Call)


# What is in a pattern


def test_names_and_operators_are_told_in_the_order_of_the_text():
    pattern = parse("add((relu|gelu)(linear(_, W, B)), [*, neg(W)], dim=V) | W")
    assert capitals(pattern) == ("W", "B", "V")
    assert operators(pattern) == ("add", "relu", "gelu", "linear", "neg")
    around = [[call.op for call in calls] for calls in calls_around(pattern, "W")]
    assert around == [["linear", "relu|gelu", "add"], ["neg", "add"], []]
