"""Reading a stream into items."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.client import stub


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub, "MAX_ITEM", 8)
    items, buffer = stub.Items("Orders.changes", dict[str, Any]), bytearray()
    assert list(items.of(buffer, b'{"a":1}\n{"b":')) == [{"a": 1}]
    with pytest.raises(ValueError, match="longer than 8 bytes"):
        list(items.of(buffer, b"1" * 8))
