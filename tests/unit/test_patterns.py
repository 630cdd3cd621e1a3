"""Patterns: exact, by prefix, and globs."""

from __future__ import annotations

import pytest

from meshlib.errors import ConfigError
from meshlib.patterns import LONGEST, MOST, matcher, named_patterns, patterns

ROWS = [
    ("abc", "abc", "ab abcd Abc xabc"),
    ("abc*", "abc abcd abc/d", "ab xabc"),
    ("*abc", "abc xabc a/abc", "abcd"),
    ("*", "a / **", ""),
    ("**", "a", ""),
    ("a*c", "ac abc a/b/c", "a c acb"),
    ("a*b*c", "abc axbxc abbbc abcbc", "acb ab bc"),
    ("aa*aa", "aaaa aaxaa", "aaa aa"),
    ("a*ab", "aab axab", "ab"),
    ("[a-z]+", "[a-z]+", "abc"),
    ("a.c", "a.c", "abc"),
    ("a?c", "a?c", "abc"),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), ROWS, ids=[row[0] for row in ROWS])
def test_patterns(pattern: str, matching: str, others: str) -> None:
    test = matcher((pattern,))
    assert [text for text in matching.split() if not test(text)] == []
    assert [text for text in others.split() if test(text)] == []


def test_nothing_is_matched_by_a_star_alone() -> None:
    assert matcher(("*",))("")
    assert not matcher(("a*", "b"))("")


def test_one_of_several() -> None:
    test = matcher(("a*", "b"))
    assert (test("ax"), test("b"), test("bx")) == (True, True, False)


def test_what_is_no_pattern() -> None:
    for given in (3, "", None, ["a", 3], [""], "x" * (LONGEST + 1)):
        with pytest.raises(ConfigError, match=r"^when.path .*is no pattern; text of 1 to 512"):
            patterns(given, "when.path")  # type: ignore[arg-type]
    for many in ([], ["a"] * (MOST + 1)):
        with pytest.raises(ConfigError, match="alternatives; 1 to 64"):
            patterns(many, "when.path")
    for named in (3, "ab", ["a"]):
        with pytest.raises(ConfigError, match="no mapping"):
            named_patterns(named, "labels")
    for name in (3, ""):
        with pytest.raises(ConfigError, match="is no name"):
            named_patterns({name: "a"}, "labels")
