"""Each mistake of the corpus gives one clear message: which setting or parameter, where from, and what to do next."""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from meshlib import ConfigError
from meshlib.cli import run
from tests.mistakes.corpus import CASES, Case

for room in ("calling", "commanding", "declaring", "documents", "frameworks", "policing", "serving", "setting", "testkit"):
    import_module(f"tests.mistakes.{room}")

SOUP = ("During handling of the above exception", "direct cause of the following exception")


def made(case: Case, request: pytest.FixtureRequest) -> Any:
    return case.make(**{name: request.getfixturevalue(name) for name in inspect.signature(case.make).parameters})


@pytest.mark.parametrize("case", [case for case in CASES if case.error], ids=lambda case: case.name)
def test_what_is_raised(case: Case, request: pytest.FixtureRequest) -> None:
    assert case.error is not None
    with pytest.raises(case.error) as caught:
        made(case, request)
    error, text = caught.value, str(caught.value)
    assert type(error) is case.error
    assert missing(case, text) == [], text
    assert is_one_message(error)
    if isinstance(error, ConfigError):
        assert error.example, "there is no next step"
        assert error.source


@pytest.mark.parametrize("case", [case for case in CASES if not case.error and case.code is None], ids=lambda case: case.name)
def test_what_is_logged(case: Case, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    made(case, request)
    told = [record for record in caplog.records if not missing(case, record.getMessage())]
    assert len(told) == 1, caplog.messages
    assert "\n" not in told[0].getMessage()
    assert told[0].exc_info is None
    assert told[0].name.startswith("meshlib")


@pytest.mark.parametrize("case", [case for case in CASES if case.code is not None], ids=lambda case: case.name)
def test_what_a_command_says(case: Case, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESH_REGISTRY", f"memory://{tmp_path}")
    monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path / "state"))
    words = made(case, request)
    assert run(words) == case.code
    said = capsys.readouterr()
    assert said.out == ""
    assert missing(case, said.err.strip().splitlines()[-1]) == [], said.err


def missing(case: Case, text: str) -> list[str]:
    return [phrase for phrase in case.phrases if phrase not in text]


def is_one_message(error: BaseException) -> bool:
    """One line, at the end of one traceback. (An error of a call may have the engine's as its cause, which its text names.)"""
    shown = "".join(traceback.format_exception(error))
    return "\n" not in str(error) and len(str(error)) < 600 and not any(mark in shown for mark in SOUP)


def test_the_negative_control_of_one_message() -> None:
    def careless() -> None:
        try:
            int("x")
        except ValueError:
            raise ConfigError("port", "is wrong")  # noqa: B904 - that is what it is about

    with pytest.raises(ConfigError) as caught:
        careless()
    assert not is_one_message(caught.value)
    assert not is_one_message(ConfigError("port", "one\ntwo"))
    assert is_one_message(ConfigError("port", "is wrong"))


def test_there_are_enough() -> None:
    assert len(CASES) >= 90
    assert len({case.name for case in CASES}) == len(CASES)


def test_no_message_shows_an_address_in_memory(request: pytest.FixtureRequest) -> None:
    """Of what was put in a wrong place, people want to know the name."""
    for case in CASES:
        if case.error is ConfigError and not inspect.signature(case.make).parameters:
            with pytest.raises(ConfigError) as caught:
                case.make()
            assert not re.search(r" at 0x[0-9a-f]{6}", str(caught.value)), case.name
