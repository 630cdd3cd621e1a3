"""call and explain, on mocked instances."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from meshlib.cli.facts import Answered, Explained, Failure
from meshlib.mesh import Mesh
from meshlib.model import Instance
from meshlib.settings import Settings
from tests.unit.cli.said import Run

REGISTRY = "static://orders=10.0.0.1:80"


def answer(request: httpx2.Request) -> httpx2.Response:
    if request.url.path == "/down":
        raise httpx2.ConnectError("refused")
    if request.url.path == "/echo":
        return httpx2.Response(201, content=request.read(), headers={"X-Saw": request.headers.get("x-tenant", "")})
    return httpx2.Response(
        404 if request.url.path == "/none" else 200, content=b"\xff\xfe" if "raw" in str(request.url) else b"tea"
    )


@pytest.fixture
def app() -> Iterator[Mesh]:
    with Mesh(Settings(registry=REGISTRY), transport=lambda _: httpx2.MockTransport(answer)) as made:
        yield made


class TestCall:
    def test_the_body_is_all_that_goes_to_standard_output(self, mesh: Run, app: Mesh) -> None:
        said = mesh("call", "orders", "get", "/x", app=app)
        assert (said.code, said.out) == (0, "tea")
        assert "200 from 10.0.0.1:80" in said.err

    def test_as_a_document(self, mesh: Run, app: Mesh) -> None:
        found = mesh("call", "orders", "post", "/echo", "-H", "X-Tenant: acme", "-d", "hello", "--json", app=app).fact(Answered)
        assert (found.status, found.method, found.body, found.base64) == (201, "POST", "hello", False)
        assert ("x-saw", "acme") in [(name.lower(), value) for name, value in found.headers]
        assert (found.service, found.instance, found.explanation) == ("orders", "10.0.0.1:80", None)

    def test_bytes_that_are_no_text(self, mesh: Run, app: Mesh) -> None:
        found = mesh("call", "orders", "get", "/raw", "--json", app=app).fact(Answered)
        assert (found.base64, base64.b64decode(found.body)) == (True, b"\xff\xfe")

    def test_an_error_status_is_a_no(self, mesh: Run, app: Mesh) -> None:
        assert mesh("call", "orders", "get", "/none", app=app).code == 1

    def test_a_call_that_fails_says_what_was_tried(self, mesh: Run, app: Mesh) -> None:
        said = mesh("call", "orders", "get", "/down", "--json", app=app)
        error = said.fact(Failure).error
        assert (said.code, error.kind) == (1, "ConnectFailed")
        assert "10.0.0.1:80" in error.detail

    def test_nobody_to_call(self, mesh: Run) -> None:
        assert mesh("call", "users", "get", "/x", "--json").fact(Failure).error.kind == "NoInstances"

    def test_with_an_explanation(self, mesh: Run, app: Mesh) -> None:
        said = mesh("call", "orders", "get", "/x", "--explain", app=app)
        assert said.out == "tea"
        assert "may be chosen" in said.err
        found = mesh("call", "orders", "get", "/x", "--explain", "--json", app=app).fact(Answered)
        assert found.explanation is not None
        assert found.explanation.ok

    def test_a_body_from_a_file(self, mesh: Run, app: Mesh, tmp_path: Path) -> None:
        (tmp_path / "body").write_text("from a file")
        assert mesh("call", "orders", "put", "/echo", "-d", f"@{tmp_path / 'body'}", app=app).out == "from a file"
        assert mesh("call", "orders", "put", "/echo", "-d", "@/none/such", app=app).code == 2

    @pytest.mark.parametrize(
        ("words", "name"),
        [(["x"], "PATH"), (["/x", "-H", "nocolon"], "--header"), (["/x", "-H", "a: b\nc: d"], "--header"),
         (["/x", "-H", ": b"], "--header")],
    )  # fmt: skip
    def test_what_is_wrong(self, words: list[str], name: str, mesh: Run, app: Mesh) -> None:
        said = mesh("call", "orders", "get", *words, "--json", app=app)
        assert (said.code, said.fact(Failure).error.name) == (2, name)


class TestExplain:
    def test_where_it_would_go(self, mesh: Run, app: Mesh) -> None:
        said = mesh("explain", "orders", "--path", "/orders/7", app=app)
        assert said.code == 0
        assert "GET /orders/7" in said.out
        found = mesh("explain", "orders", "--json", app=app).fact(Explained)
        (seen,) = found.ways[0].destinations[0].candidates
        assert (seen.eligible, seen.tier, seen.instance.host) == (True, "prime", "10.0.0.1")

    def test_nowhere_is_a_no(self, mesh: Run, app: Mesh) -> None:
        said = mesh("explain", "users", "--json", app=app)
        assert said.code == 1
        assert not said.fact(Explained).ok

    def test_the_document_that_governs_it(self, mesh: Run, orders: list[Instance], tmp_path: Path) -> None:
        (tmp_path / "rules").write_text('{"consumer": {"policies": {"retry": {"attempts": 5}}}}')
        mesh("policy", "put", "orders", "-f", tmp_path / "rules")
        (way,) = mesh("explain", "orders", "--json").fact(Explained).ways
        assert way.policies == ["retry"]
        assert way.document is not None
        assert (way.document.version, way.document.mode) == (1, "enforce")
        assert mesh("explain", "users", "--json").fact(Explained).ways[0].document is None
