"""Documents on disk: there and back, which of two wins, and what is not trusted (threats 10, 11)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from meshlib.errors import StoreError
from meshlib.governance.store import MOST_FILE, Kept, PolicyStore
from meshlib.model import ServiceUrl

ORDERS = ServiceUrl("orders")


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "state", registry="consul://one", clock=lambda: 10_000.0)


def versions(store: PolicyStore) -> list[tuple[int, float]]:
    kept = store.load(ORDERS)
    return [] if kept is None else [(kept.version, kept.confirmed)]


def test_there_and_back(store: PolicyStore, tmp_path: Path) -> None:
    assert store.load(ORDERS) is None
    assert not (tmp_path / "state").exists()
    store.save(ORDERS, 7, '{"version": 7, "note": "ü"}'.encode(), 9_000.0)
    kept = store.load(ServiceUrl("orders", "", "orders-1"))
    assert kept is not None
    assert (kept.version, kept.confirmed, kept.content) == (7, 9_000.0, '{"version": 7, "note": "ü"}')
    path = store.path(ORDERS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert store.load(ServiceUrl("orders", "shop.prod")) is None
    assert PolicyStore(tmp_path / "state", registry="consul://two").load(ORDERS) is None


@pytest.mark.parametrize(("saves", "kept"), [
    ([(1, 5.0), (2, 1.0)], (2, 1.0)),
    ([(2, 5.0), (1, 9.0)], (2, 5.0)),
    ([(2, 5.0), (2, 9.0)], (2, 9.0)),
    ([(2, 9.0), (2, 5.0)], (2, 9.0)),
])  # fmt: skip
def test_the_higher_version_wins_whoever_writes_last(
    store: PolicyStore, saves: list[tuple[int, float]], kept: tuple[int, float]
) -> None:
    for version, confirmed in saves:
        store.save(ORDERS, version, b"{}", confirmed)
    assert versions(store) == [kept]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".hidden", "a\0b", ""])
def test_a_name_that_is_no_name_reaches_no_file(store: PolicyStore, name: str, tmp_path: Path) -> None:
    for act in (lambda: store.load(ServiceUrl(name)), lambda: store.save(ServiceUrl(name), 1, b"{}", 0.0)):
        with pytest.raises(StoreError):
            act()
    assert list(tmp_path.iterdir()) == []


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def forge(**changes: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        kept = Kept(**{**json.loads(path.read_bytes()), **changes})  # type: ignore[arg-type]
        path.write_bytes(json.dumps({**json.loads(path.read_bytes()), **changes, "checksum": kept.digest()}).encode())

    return apply


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"[" * 100_000),
    lambda path: path.write_bytes(path.read_bytes().replace(b'"version":7', b'"version":8')),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b" " * (MOST_FILE + 1)),
    lambda path: path.chmod(0o644),
    link,
    forge(service="stock"),
    forge(registry="consul://two"),
    forge(schema=2),
])  # fmt: skip
def test_what_is_damaged_or_not_ours_is_put_aside(
    store: PolicyStore, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    store.save(ORDERS, 7, b"{}", 1.0)
    spoil(store.path(ORDERS))
    assert versions(store) == []
    assert "are not used, and kept as" in caplog.text
    assert [each for each in store.path(ORDERS).parent.iterdir() if ".quarantined-" in each.name]
    store.save(ORDERS, 1, b"{}", 2.0)
    assert versions(store) == [(1, 2.0)]


def test_a_directory_that_others_may_write_to(store: PolicyStore, caplog: pytest.LogCaptureFixture) -> None:
    store.save(ORDERS, 7, b"{}", 1.0)
    store.path(ORDERS).parent.chmod(0o777)
    assert versions(store) == []
    assert "can be written to by others" in caplog.text
    with pytest.raises(StoreError):
        store.save(ORDERS, 8, b"{}", 1.0)
    store.path(ORDERS).parent.chmod(0o700)
    assert versions(store) == [(7, 1.0)]


def test_a_disk_that_is_full_leaves_what_was_there(store: PolicyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(ORDERS, 7, b"{}", 1.0)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.save(ORDERS, 8, b"{}", 1.0)
    assert versions(store) == [(7, 1.0)]
