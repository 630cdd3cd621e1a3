"""The tree that is drawn is the tree there is."""

import re

import pytest

from meshlib import errors
from meshlib.errors import ConfigError, MeshError, MissingExtra, StatusError, status_error_type


def test_every_error_is_drawn() -> None:
    drawing = errors.__doc__ or ""
    defined = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, MeshError)}
    assert defined == {name for name in defined if re.search(rf"\b{name}\b", drawing)}


def test_config_error_names_source_and_example() -> None:
    error = ConfigError("MESH_PORT", "is not a port", source="environment", example="8080")
    assert str(error) == "MESH_PORT (from environment): is not a port; for example 8080"


def test_missing_extra_says_what_to_install() -> None:
    assert "pip install 'meshlib-cloud[consul]'" in str(MissingExtra("MESH_REGISTRY", "consul", "consul"))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "BadRequest"), (404, "NotFound"), (418, "ClientError"), (429, "TooManyRequests"), (500, "ServerError"),
     (503, "ServiceUnavailable"), (599, "ServerError"), (301, "StatusError"), (600, "StatusError")],
)  # fmt: skip
def test_status_error_types(status: int, kind: str) -> None:
    made = status_error_type(status)
    assert made.__name__ == kind
    assert issubclass(made, StatusError)
