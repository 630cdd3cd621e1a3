"""Ranges of versions: a table along the grammar of node-semver, what is refused, and versions as people write them."""

from __future__ import annotations

import pytest

from meshlib.errors import ConfigError
from meshlib.versions import LONGEST, checked, within

# A range, versions in it, versions not in it.
TABLE = [
    # exact
    ("1.2.3", "1.2.3", "1.2.2 1.2.4 1.2.3-rc.1"),
    ("=1.2.3", "1.2.3", "1.2.4"),
    ("v1.2.3", "1.2.3", "1.2.4"),
    ("= v1.2.3", "1.2.3", "1.2.4"),
    ("==1.2.3", "1.2.3", "1.2.4"),
    ("1.2.3-rc.1", "1.2.3-rc.1", "1.2.3 1.2.3-rc.2"),
    ("1.2.3+build.7", "1.2.3 1.2.3+build.8", "1.2.4"),
    # comparators, and sets of them
    (">1.2.3", "1.2.4 2.0.0", "1.2.3 1.2.2 1.2.4-rc.1"),
    (">=1.2.3", "1.2.3 9.0.0", "1.2.2 1.2.3-rc.1"),
    ("<1.2.3", "1.2.2 0.0.0", "1.2.3 1.2.3-rc.1"),
    ("<=1.2.3", "1.2.3 1.0.0", "1.2.4"),
    (">=2,<3", "2.0.0 2.9.9", "1.9.9 3.0.0 3.0.0-rc.1"),
    (">=2 <3", "2.0.0 2.9.9", "1.9.9 3.0.0"),
    (">= 2 , < 3", "2.0.0 2.9.9", "1.9.9 3.0.0"),
    (">=2,<3,", "2.5.0", "3.0.0"),
    (">1.2.3 <1.2.5", "1.2.4", "1.2.3 1.2.5"),
    (">3 <2", "", "1.0.0 2.5.0 4.0.0"),
    ("1.2.3 1.2.4", "", "1.2.3 1.2.4"),
    (">=v1.2", "1.2.0 2.0.0", "1.1.9"),
    # partial versions
    ("1", "1.0.0 1.9.9", "0.9.9 2.0.0"),
    ("1.2", "1.2.0 1.2.9", "1.1.9 1.3.0"),
    ("=1", "1.5.0", "2.0.0"),
    (">1", "2.0.0", "1.0.0 1.9.9"),
    (">1.2", "1.3.0 2.0.0", "1.2.0 1.2.9"),
    ("<2", "1.9.9", "2.0.0 2.0.0-rc.1"),
    ("<1.2", "1.1.9", "1.2.0"),
    ("<=2", "2.9.9 1.0.0", "3.0.0"),
    ("<=1.2", "1.2.9", "1.3.0"),
    # X-ranges
    ("*", "0.0.0 1.2.3", "1.2.3-rc.1"),
    ("x", "1.2.3", "1.2.3-rc.1"),
    ("1.x", "1.0.0 1.9.9", "2.0.0 0.9.0"),
    ("1.X.X", "1.0.0 1.9.9", "2.0.0"),
    ("1.2.*", "1.2.0 1.2.9", "1.3.0"),
    ("1.*", "1.9.0", "2.0.0"),
    (">=1.x", "1.0.0 3.0.0", "0.9.0"),
    ("<=2.x", "2.9.0", "3.0.0"),
    (">1.2.x", "1.3.0", "1.2.9"),
    ("<*", "", "0.0.0 1.0.0 0.0.0-0"),
    (">x", "", "0.0.0 1.0.0"),
    ("~*", "3.0.0", "3.0.0-rc.1"),
    ("^*", "3.0.0", "3.0.0-rc.1"),
    ("^0.0.0", "0.0.0", "0.0.1"),
    # hyphens
    ("1.2.3 - 2.3.4", "1.2.3 2.0.0 2.3.4", "1.2.2 2.3.5"),
    ("1.2 - 2.3.4", "1.2.0 2.3.4", "1.1.9 2.3.5"),
    ("1.2.3 - 2.3", "1.2.3 2.3.9", "2.4.0"),
    ("1.2.3 - 2", "1.2.3 2.9.9", "3.0.0"),
    ("v1 - v2", "1.0.0 2.9.9", "0.9.0 3.0.0"),
    # tildes
    ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0 1.3.0-rc.1"),
    ("~1.4.0", "1.4.0 1.4.7", "1.5.0 1.3.9"),
    ("~1.2", "1.2.0 1.2.9", "1.3.0 1.1.9"),
    ("~1", "1.0.0 1.9.9", "2.0.0"),
    ("~0.2.3", "0.2.3 0.2.9", "0.3.0"),
    ("~0.2", "0.2.0", "0.3.0"),
    ("~0", "0.0.0 0.9.9", "1.0.0"),
    ("~> 1.4", "1.4.0 1.4.9", "1.5.0"),
    ("~ 1.4.2", "1.4.2", "1.4.1 1.5.0"),
    ("~v1.2.3", "1.2.5", "1.3.0"),
    ("~1.x", "1.0.0 1.9.0", "2.0.0"),
    ("~1.2.3-beta.2", "1.2.3-beta.2 1.2.3-beta.4 1.2.3 1.2.9", "1.2.3-beta.1 1.2.4-beta.2 1.3.0"),
    # carets
    ("^1.2", "1.2.0 1.9.9", "1.1.9 2.0.0 2.0.0-rc.1 1.5.0-rc.1"),
    ("^1.2.3", "1.2.3 1.9.9", "1.2.2 2.0.0"),
    ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3.0"),
    ("^0.0.3", "0.0.3", "0.0.2 0.0.4"),
    ("^0.0", "0.0.0 0.0.9", "0.1.0"),
    ("^0.0.x", "0.0.0 0.0.9", "0.1.0"),
    ("^0", "0.0.0 0.9.9", "1.0.0"),
    ("^0.x", "0.9.9", "1.0.0"),
    ("^1.x", "1.0.0 1.9.9", "2.0.0"),
    ("^1.2.x", "1.2.0 1.9.9", "1.1.9 2.0.0"),
    ("^ 1.2", "1.2.0", "2.0.0"),
    ("^v1.2", "1.2.0", "2.0.0"),
    ("^1.2.3-beta.2", "1.2.3-beta.2 1.2.3-rc.1 1.2.3 1.9.0", "1.2.3-beta.1 1.2.4-beta.2 2.0.0 2.0.0-rc.1"),
    ("^0.0.3-beta", "0.0.3-beta 0.0.3-pr.2 0.0.3", "0.0.3-alpha 0.0.4 0.0.4-rc.1"),
    # alternatives
    ("^1.2 || ^3", "1.2.0 3.0.0", "2.0.0 1.1.0 4.0.0"),
    ("^1||^3", "1.2.0 3.0.0", "2.0.0"),
    ("1.2.7 || >=1.2.9 <2.0.0", "1.2.7 1.2.9 1.4.6", "1.2.8 2.0.0"),
    ("1 - 2 || 4", "1.0.0 2.9.0 4.1.0", "3.0.0 5.0.0"),
    # pre-releases: only those of the version that a comparator names
    (">1.2.3-alpha.3", "1.2.3-alpha.7 1.2.3-beta 1.2.3 3.4.5", "1.2.3-alpha.3 3.4.5-alpha.9"),
    (">=1.2.3-rc.1 <2", "1.2.3-rc.1 1.2.3 1.9.0", "1.2.3-beta 1.3.0-rc.1 2.0.0-rc.1"),
    (">=1.2.3-rc.1 <1.2.3-rc.5", "1.2.3-rc.1 1.2.3-rc.4", "1.2.3-rc.5 1.2.3"),
    ("<=1.2.3-rc.2", "1.2.3-rc.2 1.2.3-rc.1 1.2.2", "1.2.3 1.2.3-rc.3 1.2.2-rc.1"),
    ("<1.2.3-rc.2", "1.2.3-rc.1 1.2.2", "1.2.3-rc.2 1.2.3"),
    (">=2.0.0-0", "2.0.0-0 2.0.0-rc.1 2.0.0", "1.9.9 2.1.0-rc.1"),
    ("1.2.3-rc.1 - 2.0.0", "1.2.3-rc.1 1.2.3-rc.9 1.2.3 2.0.0", "1.2.3-beta 2.0.0-rc.1 2.0.1"),
]  # fmt: skip


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("wanted", "inside", "outside"), TABLE, ids=[row[0] for row in TABLE])
def test_ranges(wanted: str, inside: str, outside: str) -> None:
    if inside:
        assert checked(wanted, "version") == wanted
    assert [version for version in inside.split() if not within(version, wanted)] == [], "in it"
    assert [version for version in outside.split() if within(version, wanted)] == [], "not in it"


@pytest.mark.parametrize("wanted", [row[0] for row in TABLE if not row[1]] + ["^1 >=2 || <1 >1"])
def test_a_range_without_versions_is_a_mistake(wanted: str) -> None:
    with pytest.raises(ConfigError, match="is an empty range: no version is in it"):
        checked(wanted, "version")


@pytest.mark.parametrize("wanted", [">3 <2 || 1.x", ">=1 <=1.0.0", ">=1.2.3-a <1.2.3", "^1.2 >1.4", "=1.2.3 >=1.0.0"])
def test_a_range_with_few_versions_is_none(wanted: str) -> None:
    assert checked(wanted, "version") == wanted


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("v2", "^2"), ("1.4", "~1.4.0"), ("2", ">=2,<3"), ("V1.2", "1.2"), (" 1.2.3 ", "1.2.3"), ("1.4.2.7", "1.4.2"),
     ("2024.01.15", "2024.x"), ("1.4.2+build", "^1.4"), ("1.2-rc1", ">=1.2.0-rc"), ("=1.0.0", "1")],
)  # fmt: skip
def test_versions_as_people_write_them(version: str, wanted: str) -> None:
    assert within(version, wanted)


@pytest.mark.parametrize("version", ["", "latest", "main", "x", "-1", "..", "v", "1.0.0-", "é", "1.0.0-01"])
def test_what_is_no_version_is_in_no_range_or_read_generously(version: str) -> None:
    assert not within(version, ">=2")


@pytest.mark.parametrize(
    "text",
    [
        "latest",
        "a.b",
        ">",
        "^",
        "1.2.3.4",
        "^1.2.3.4",
        "!1",
        "=>1",
        "^é",
        "",
        " ",
        "1 ||",
        ",",
        "01.2.3",
        "1.x-rc",
        "1.2.3-01",
        "1 - ",
        "1 || x y z",
        "9" * 300,
        3,
        None,
        ("^1",),
    ],
)
def test_what_is_no_range(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^rules\[0\].to.version .*allowed.*for example") as caught:
        checked(text, "rules[0].to.version")
    assert len(str(caught.value)) < 300


def test_long_numbers_and_texts_are_read_in_no_time() -> None:
    assert not within("9" * 500, "^1")
    assert not within("1." * 250, "^2")
    assert checked(" || ".join(["^1"] * 40), "version")
    assert LONGEST == 256
