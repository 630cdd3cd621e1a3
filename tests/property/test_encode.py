"""Whatever the arguments are, they arrive as they were and where they belong."""

from __future__ import annotations

from typing import Annotated, Any, Protocol
from urllib.parse import parse_qsl, unquote

from hypothesis import given
from hypothesis import strategies as st

from meshlib import ConfigError, Header, Query, get, service_client
from meshlib.client.encode import Encoder
from meshlib.client.stub import declaration_of


@service_client("orders")
class Orders(Protocol):
    @get("/a/{one}/b/{two}?fixed=1")
    def fetch(
        self, one: str, two: str, q: str | None = None, many: list[str] | None = None,
        odd: Annotated[str | None, Query("ö&=#")] = None, tenant: Annotated[str | None, Header("X-Tenant")] = None,
    ) -> None: ...  # fmt: skip

    @get("/f/{rest:path}")
    def file(self, rest: str) -> None: ...


METHODS = {method.name: method for method in declaration_of(Orders).methods}
FETCH, FILE = (Encoder(METHODS[name], (), b"*/*") for name in ("fetch", "file"))

anything = st.one_of(st.text(), st.text("/.%?#&=+ \r\n\0\\;:@é\U0001f34e"), st.text(st.characters()))
LINE_BREAKS = {b"\r"[0], b"\n"[0], 0}


@given(anything, anything, st.none() | anything, st.lists(anything), st.none() | anything)
def test_path_and_query(one: str, two: str, q: str | None, many: list[str], odd: str | None) -> None:
    try:
        target, *_ = FETCH((one, two), {"q": q, "many": many, "odd": odd})
    except ConfigError:
        assert {one, two} & {"", ".", ".."} or not all(_encodable(text) for text in (one, two, q or "", *many, odd or ""))
        return
    assert not LINE_BREAKS & set(target)
    path, _, query = target.decode("ascii").partition("?")
    assert [unquote(part) for part in path.split("/")] == ["", "a", one, "b", two]
    expected = [("fixed", "1"), *([("q", q)] if q is not None else []), *(("many", each) for each in many)]
    assert parse_qsl(query, keep_blank_values=True) == expected + ([("ö&=#", odd)] if odd is not None else [])


@given(anything)
def test_a_path_of_several_segments_never_climbs(rest: str) -> None:
    try:
        target, *_ = FILE((rest,), {})
    except ConfigError:
        assert not rest or {".", ".."} & set(rest.split("/")) or not _encodable(rest)
        return
    parts = target.decode("ascii").split("/")
    assert parts[:2] == ["", "f"]
    assert [unquote(part) for part in parts[2:]] == rest.split("/")
    assert not {".", ".."} & set(parts)


@given(anything)
def test_headers(value: str) -> None:
    try:
        _, headers, *_ = FETCH(("a", "b"), {"tenant": value})
    except ConfigError as refused:
        assert "X-Tenant" in str(refused)
        assert not value.isascii() or not value.isprintable()
        return
    sent: dict[bytes, Any] = dict(headers)
    assert not LINE_BREAKS & set(sent[b"X-Tenant"])
    assert sent[b"X-Tenant"].decode("latin-1") == value.encode("latin-1").strip().decode("latin-1")


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
