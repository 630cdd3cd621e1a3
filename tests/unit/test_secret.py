"""Secrets never show themselves."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from pathlib import Path

import pytest

from meshlib.errors import ConfigError
from meshlib.security.secret import Secret
from meshlib.settings import Settings

TOKEN = "hunter2-hunter2"


def test_it_is_never_shown() -> None:
    secret = Secret(TOKEN)
    assert secret.reveal() == TOKEN
    for text in (repr(secret), str(secret), f"{secret}", repr([secret]), repr({"token": secret})):
        assert TOKEN not in text
    with pytest.raises(TypeError):
        vars(secret)


@pytest.mark.parametrize("save", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_copied_out(save: object) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        save(Secret(TOKEN))  # type: ignore[operator]


def test_equality() -> None:
    assert Secret(TOKEN) == Secret(TOKEN)
    assert Secret(TOKEN) != Secret("other")
    assert Secret(TOKEN) != TOKEN
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret(TOKEN))


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    secret = Secret(path=str(file))
    assert secret.reveal() == "one"
    file.write_text("three\n")
    assert secret.reveal() == "three"


def test_a_file_that_is_swapped_within_a_tick_of_the_clock(tmp_path: Path) -> None:
    """As mounted secrets are: another file under the same name, perhaps with the same time."""
    file, other = tmp_path / "token", tmp_path / "other"
    file.write_text("one")
    other.write_text("two")
    os.utime(file, ns=(10**18, 10**18))
    os.utime(other, ns=(10**18, 10**18))
    secret = Secret(path=str(file))
    assert secret.reveal() == "one"
    other.replace(file)
    assert secret.reveal() == "two"


def test_a_file_that_goes_away_leaves_what_it_said(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    secret = Secret(path=str(file))
    assert secret.reveal() == "one"
    file.unlink()
    assert secret.reveal() == "one"
    file.write_bytes(b"\xff\xfe\x00")
    assert secret.reveal() == "one"


def test_a_file_that_never_was_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Secret(path=str(tmp_path / "missing")).reveal()


def test_a_file_that_is_not_text_does_not_show_its_content(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN.encode() + b"\xff")
    with pytest.raises(ConfigError, match="it is not text") as caught:
        Secret(path=str(file)).reveal()
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__suppress_context__


def test_settings_do_not_show_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    settings = Settings(registry_token=TOKEN, registry_password=TOKEN)  # type: ignore[arg-type]
    assert TOKEN not in repr(settings) + str(settings)
    assert settings.token is not None
    assert settings.token.reveal() == TOKEN
    from_file = Settings(registry_token_file=str(file), registry_password_file=str(file))
    assert from_file.token is not None
    assert from_file.password is not None
    assert from_file.token.reveal() == from_file.password.reveal() == TOKEN
    assert TOKEN not in repr(from_file)


def test_it_comes_without_the_newline_of_whoever_set_it() -> None:
    settings = Settings.load(environ={"MESH_REGISTRY_TOKEN": TOKEN + "\n"})
    assert settings.token == Secret(TOKEN)


@pytest.mark.parametrize(
    "environ",
    [
        {"MESH_REGISTRY": f"consul://user:{TOKEN}@10.0.0.1:8500"},
        {"MESH_REGISTRY": f"consul://user:{TOKEN}/x@10.0.0.1:8500"},
        {"MESH_REGISTRY": f"etcd://user:{TOKEN}?x@10.0.0.1:8500"},
        {"MESH_REGISTRY": f"static://orders=user:{TOKEN}@10.0.0.5:8080"},
        {"MESH_REGISTRY": f"http://user:{TOKEN}@10.0.0.1:8500"},
        {"MESH_REGISTRY": f"user:{TOKEN}@10.0.0.1:8500"},
        {"MESH_REGISTRY_TOKEN": TOKEN, "MESH_PORT": "x"},
        {"MESH_REGISTRY_PASSWORD": TOKEN, "MESH_PORT": "x"},
    ],
)
def test_errors_do_not_show_it(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ=environ)
    text = "".join(traceback.format_exception(caught.value))
    for part in (TOKEN, TOKEN[:5]):
        assert part not in text.replace(repr(environ), "")


@pytest.mark.parametrize("value", [b"hunter2", 12345, ["hunter2"]])
def test_a_secret_that_is_no_text(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^MESH_REGISTRY_TOKEN \(from code\): a \w+ is of no use here") as caught:
        Settings(registry_token=value)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    assert "12345" not in str(caught.value)
