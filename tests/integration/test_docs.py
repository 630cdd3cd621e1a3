"""Every page of docs/ is executed as a reader would (see :mod:`tests.snippets`), and is in the navigation. Tutorials have a file
of their own, for they take as long as all others."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer
from tests.snippets import LANGUAGES, PRINTS, TOP, Room, fences

DOCS = TOP / "docs"
README = TOP / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
TESTS = DOCS / "testing.md"  # is made of tests: tests/unit/testing/test_docs.py has pytest run them
RUN = [page for page in PAGES if page != TESTS and {"python", "sh"} & {each.lang for each in fences(page.read_text())}]


def name_of(page: Path) -> str:
    return str(page.relative_to(TOP))


@pytest.fixture(scope="module")
def consul() -> Iterator[ConsulServer]:
    with closing(ConsulServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with closing(EtcdServer()) as server:
        server.start()
        yield server


def exchanges(text: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """Where the pages have a Consul and an etcd, and where ours are; they are started for pages that need them."""
    wanted = {"127.0.0.1:8500": "consul", "127.0.0.1:2379": "etcd"}
    return {
        address: f"127.0.0.1:{request.getfixturevalue(server).port}" for address, server in wanted.items() if address in text
    }


@pytest.mark.parametrize("page", [page for page in RUN if page.parent.name != "tutorials"], ids=name_of)
def test_page(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = page.read_text()
    with Room(tmp_path, exchange=exchanges(text, request)) as room:
        room.run(fences(text), name_of(page))


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_fences_are_of_known_languages(page: Path) -> None:
    """So nobody escapes execution by another name for the same language."""
    assert {each.lang for each in fences(page.read_text())} <= LANGUAGES
    assert page.read_text().count("```") == 2 * len(fences(page.read_text()))


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_files_of_a_page_are_used_by_it(page: Path) -> None:
    """But for those of a framework's own layout, which it finds by itself."""
    found = fences(page.read_text())
    for place, fence in enumerate(found):
        if fence.title and fence.title != PRINTS and "/" not in fence.title:
            later = "\n".join(each.body for each in found[place + 1 :])
            assert re.search(rf"\b{re.escape(Path(fence.title).stem)}\b", later), fence.title


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_what_is_installed_exists(page: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    named = re.findall(r"pip install .*?(?:\.|meshlib-cloud)\[([\w,]+)\]", page.read_text())
    assert {extra for found in named for extra in found.split(",")} <= set(setup["options.extras_require"])


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_settings_that_are_named_exist(page: Path) -> None:
    from meshlib.settings import env_name, knobs

    known = {env_name(knob.name) for knob in knobs()}
    named = set(re.findall(r"\bMESH_[A-Z]+(?:_[A-Z]+)*", page.read_text()))
    assert named <= known, named - known


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_pages_that_are_linked_exist(page: Path) -> None:
    """``make docs`` says so for docs/, and for headings; nobody else for the README."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_all_pages_are_in_the_navigation() -> None:
    navigation = (TOP / "mkdocs.yml").read_text()
    assert [name_of(page) for page in PAGES if str(page.relative_to(DOCS)) not in navigation] == []


def test_the_reference_has_all_public_names() -> None:
    import meshlib

    said = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    errors = {name for name in meshlib.__all__ if issubclass(type(getattr(meshlib, name)), type) and name in _errors()}
    named = set(re.findall(r"^::: meshlib\.(\w+)$", said, re.MULTILINE)) | errors
    assert set(meshlib.__all__) - {"__version__"} <= named, set(meshlib.__all__) - named


def _errors() -> set[str]:
    """Those are all on the page that has the whole module."""
    import meshlib.errors

    assert "::: meshlib.errors" in (DOCS / "reference" / "errors.md").read_text()
    return {name for name in vars(meshlib.errors) if not name.startswith("_")}
