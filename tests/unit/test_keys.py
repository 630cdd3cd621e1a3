"""Keys: what of a call decides where it goes."""

from __future__ import annotations

import datetime
import enum
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any, Protocol
from zlib import crc32

import pytest

from meshlib import Header, get, service_client
from meshlib.balance.pickers import Key, cookie, header, parameter, path
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.keys import BITS, digest
from tests.unit.balance.pickers.naive import chi_square
from tests.unit.client.declared import Seen, client
from tests.unit.flows import call_to
from tests.unit.wiring import World

HEADERS = [(b"Host", b"orders"), (b"X-USER-ID", b"7"), (b"x-user-id", b"8"), (b"x-empty", b""), (b"x-user-idx", b"9")]


@pytest.mark.parametrize(("name", "key"), [("x-user-id", b"7"), ("X-User-Id", b"7"), ("x-empty", None), ("x-none", None)])
def test_header(name: str, key: bytes | None) -> None:
    assert header(name)(call_to(headers=HEADERS)) == key


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ([b"session=s1"], b"s1"),
        ([b"a=1; session=s1; b=2"], b"s1"),
        ([b"a=1", b"session=s1"], b"s1"),
        ([b'session="s1"'], b"s1"),
        ([b"session=a=b"], b"a=b"),
        ([b"xsession=1; sessionx=2"], None),
        ([b"session=; a=1"], None),
        ([b"session"], None),
        ([b""], None),
        ([], None),
    ],
)
def test_cookie(sent: list[bytes], key: bytes | None) -> None:
    assert cookie("session")(call_to(headers=[(b"Accept", b"session=no"), *((b"Cookie", one) for one in sent)])) == key


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (b"/?customer=7", b"7"),
        (b"/?a=1&customer=7&customer=8", b"7"),
        (b"/?%63ustomer=7", b"7"),
        (b"/?customer=a%20b", b"a b"),
        (b"/?customer=a+b", b"a b"),
        (b"/?customer=", None),
        (b"/?customer", None),
        (b"/?xcustomer=7", None),
        (b"/customer=7", None),
        (b"/?", None),
    ],
)
def test_parameter_of_the_query(target: bytes, key: bytes | None) -> None:
    assert parameter("customer")(call_to(target)) == key


class Size(enum.Enum):
    BIG = "big"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (7, b"7"), ("7", b"7"), (b"\xff", b"\xff"), (True, b"true"), (Size.BIG, b"big"), (datetime.date(2024, 2, 29), b"2024-02-29"),
        (None, None), ("", None), ([], None), ([7, 8], b"7"), ("é", "é".encode()), ("\ud800", b"\xed\xa0\x80"), (0, b"0"),
    ],
)  # fmt: skip
def test_parameter_of_a_declared_method(value: Any, key: bytes | None) -> None:
    assert parameter("customer")(call_to(b"/?customer=other", arguments={"customer": value})) == key
    assert parameter("customer")(call_to(b"/?customer=7", arguments={"id": value})) == b"7", "not an argument: the query"


@service_client("orders")
class Orders(Protocol):
    @get("/orders/{id}")
    def fetch(self, id: int, *, page: int = 1, tenant: Annotated[str, Header("X-Tenant")] = "t") -> None: ...


def test_a_declared_method_gives_its_arguments_by_their_python_names() -> None:
    seen: list[Call] = []
    world = World(Seen())
    proceed = world.proceed["orders"]
    world.proceed["orders"] = lambda call: (seen.append(call), proceed(call))[1]
    client(Orders, world).fetch(7, tenant="acme")
    (call,) = seen
    assert [parameter(name)(call) for name in ("id", "tenant", "page", "other")] == [b"7", b"acme", b"1", None]
    assert call_to().arguments is None


def test_path() -> None:
    assert path()(call_to(b"/orders/7?page=2")) == path()(call_to(b"/orders/7")) == b"/orders/7"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: header(""), "x-user-id"),
        (lambda: header(7), "7 is not the name"),  # type: ignore[arg-type]
        (lambda: cookie("a b"), 'cookie\\("session"\\)'),
        (lambda: parameter("é"), 'parameter\\("customer"\\)'),
    ],
)  # fmt: skip
def test_names_that_are_none(make: Callable[[], Key], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


# -- the digest

SIMILAR = {
    "numbered": [b"%d" % number for number in range(20_000)],
    "padded": [b"user-%08d" % number for number in range(20_000)],
    "binary": [number.to_bytes(8, "big") for number in range(20_000)],
    "every 4096th": [(number << 12).to_bytes(8, "little") for number in range(20_000)],
    "paths": [b"/orders/%d/items/%d" % divmod(number, 20) for number in range(20_000)],
    "two bits of 128": [(1 << one | 1 << two).to_bytes(16, "big") for one in range(128) for two in range(one)],
}
SIZES = (7, 10, 64, 160, 1000)


def worst(hashed: Callable[[bytes], int], bits: int) -> float:
    """Standard deviations that the heaps are off, at worst: modulo, and by place on the circle."""
    found = 0.0
    for keys in SIMILAR.values():
        for size in SIZES:
            remainders, places = [0] * size, [0] * size
            for value in map(hashed, keys):
                remainders[value % size] += 1
                places[value * size >> bits] += 1
            for heaps in (remainders, places):
                found = max(found, abs(chi_square(heaps, [len(keys) / size] * size)))
    return found


def test_similar_keys_are_spread_as_by_chance() -> None:
    assert worst(digest, BITS) < 4.0
    assert worst(crc32, 32) > 50.0, "the control: what is under it alone heaps them up"


def test_it_is_the_same_in_every_process() -> None:
    code = "from meshlib.keys import digest; print(digest(b'user-7'), hash(b'user-7'))"
    seen = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    (one, salted), (two, otherwise) = (done.stdout.split() for done in seen)
    assert one == two == str(digest(b"user-7")) == "868915907"
    assert salted != otherwise, "the control: hash() is not"
