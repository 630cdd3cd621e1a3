"""Payloads as a registry might hold them: good ones, and everything a hostile, broken or careless writer could leave there.

All are bytes of JSON, made from a seed; good ones are among the bad, and known by their ids, which begin with ``good-``.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GOOD_HOSTS = (
    "10.0.0.5",
    "192.168.1.77",
    "fe80::1",
    "2001:db8::5",
    "[2001:db8::6]",
    "orders.internal",
    "Node-7.DC1",
    "a",
    "x_y.z",
)
BAD_HOSTS = (
    "2130706433", "0x7f.1", "0x7f000001", "127.1", "017700000001", "0177.0.0.1", "10.0.0.0x5", "1.2.3.4.5", "256.1.1.1",
    "x@evil", "user:secret@10.0.0.5", "10.0.0.5\r\nX: 1", "10.0.0.5\n", "fe80::1%eth0", "fe80::1%25eth0", "[::1", "::1]", "[]",
    "[10.0.0.5]", "[host]", "[[::1]]", "host/path", "host#frag", "host?query", "host:80", "10.0.0.5:80", "http://10.0.0.5",
    "//evil", "evil\\@10.0.0.5", "", " ", "10.0.0.5 ", " 10.0.0.5", "10.0.0.5\x00", "\x7f", "a..b", ".", "..", "-a", "a-", "a b",
    "١٠.٠.٠.٥", "１０.0.0.5", "10。0。0。5", "①⓪.0.0.5", "ⅷ.example", "exämple", "a\u2028b", "\u202egnp.moc", "a\u200bb", "*",
    "%31%30.0.0.5", "10.0.0.5%00", "x" * 64, ".".join(["abc"] * 80), "1e1", "::ffff:1.2.3", "::g", ":::", "1::2::3", "host.0x1",
    "host.12", "0", "00.00.00.00", "localhost,evil", "$(id)", "${jndi:ldap://evil}", "' OR 1=1 --", "<script>", "a;b", "a|b",
)  # fmt: skip
GOOD_PORTS = (1, 80, 8080, 65535)
BAD_PORTS = (
    0, -1, 65536, 10**9, 10**30, -(10**30), 80.5, 1e300, True, False, None, "", "0", "-1", "+80", " 80", "80 ", "8_0", "0x50", "８０",
    "٨٠", "80.0", "1e3", "65536", "80\r\n", "9" * 5000, [], [80], {}, {"port": 80},
)  # fmt: skip
BAD_IDS = (
    "",
    " ",
    "a b",
    "a\r\nX: 1",
    "a\x00",
    "é",
    "x" * 256,
    "\u202e",
    "a\x1b[31m",
    "a\n2026 ERROR forged",
    5,
    None,
    [],
    {},
    True,
)
BAD_TEXTS = ("a\r\nb", "\x00", "\x1b[2J", "\u2028", "x" * 513, "x" * 100_000, 5, None, [], {}, True, 1.5)
WRONG = (None, True, False, 0, -1, 1.5, 10**40, "", "text", [], [[]], {}, {"a": {}})
NASTY = "\r\n\t\0 @/#?%:[]{}\\\"'<>,;|&=+*~^`.-_0x１٠。①é\u2028\u202e\x7f\x85"
DEEP = 100_000


@dataclass(frozen=True)
class Raw:
    """JSON as it is to be written."""

    text: bytes


def dump(value: Any) -> bytes:
    """``value`` as JSON, with the :class:`Raw` parts in it."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(key).encode() + b":" + dump(one) for key, one in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(dump, value)) + b"]"
    return json.dumps(value).encode()


class Generator:
    """Makes payloads, all different, from ``seed``."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.made = 0

    def odds(self, chance: float) -> bool:
        return self.rng.random() < chance

    def host(self) -> Any:
        match self.rng.randrange(10):
            case 0 | 1 | 2 | 3:
                return self.rng.choice(BAD_HOSTS)
            case 4 | 5 | 6:
                return self.bent(self.rng.choice(GOOD_HOSTS))
            case 7:
                return "".join(self.rng.choices(NASTY + "abc0123456789", k=self.rng.randrange(12)))
            case 8:
                return ".".join(
                    str(self.rng.choice((0, 1, 127, 255, 256, "0x1", "01"))) for _ in range(self.rng.randrange(1, 6))
                )
        return self.rng.choice(WRONG)

    def bent(self, text: str) -> str:
        """``text`` with a character or two put in, replaced or left out."""
        for _ in range(self.rng.choice((1, 1, 2))):
            place = self.rng.randrange(len(text) + 1)
            text = text[:place] + self.rng.choice(("", self.rng.choice(NASTY))) + text[place + self.rng.randrange(2) :]
        return text

    def good(self) -> dict[str, Any]:
        """The fields of a good instance."""
        self.made += 1
        fields = {"id": f"good-{self.made}", "host": self.rng.choice(GOOD_HOSTS), "port": self.rng.choice(GOOD_PORTS)}
        more = {"scheme": "https", "zone": "eu-1a", "version": "1.2", "weight": 5, "labels": {"team": "pay"}, "generation": "g"}
        return fields | {key: value for key, value in more.items() if self.odds(0.3)}

    def bad(self) -> dict[str, Any]:
        """The fields of an instance with something wrong, or at least strange, about it."""
        fields = self.good() | {"id": f"bad-{self.made}"}
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            fields |= self.rng.choice(self._changes)(self)
        for gone in self.rng.sample(sorted(fields), self.rng.choice((0, 0, 0, 1))):
            del fields[gone]
        return fields

    _changes: tuple[Callable[[Generator], dict[str, Any]], ...] = (
        lambda self: {"host": self.host()},
        lambda self: {"host": self.host()},
        lambda self: {"host": self.host()},
        lambda self: {"port": self.rng.choice(BAD_PORTS)},
        lambda self: {"id": self.rng.choice(BAD_IDS)},
        lambda self: {self.rng.choice(("zone", "version", "generation", "namespace", "status")): self.rng.choice(BAD_TEXTS)},
        lambda self: {"scheme": self.rng.choice(("ftp", "HTTP", "http://", "https:", "javascript", "file", 5, None))},
        lambda self: {"weight": self.rng.choice((-1, 10_001, 1e9, "x", True, [], None, 10**30))},
        lambda self: {"labels": self.labels()},
        lambda self: {"service": "other", "namespace": "x.y"},
        lambda self: {self.rng.choice(("extra", "__class__", "host ", "port\n", "é")): self.rng.choice(WRONG)},
        lambda self: {"extra": Raw(self.rng.choice((b"1e999", b"-0", b"9" * 400, b'"\\ud800"', b'"\xff\xfe"', b"NaN", b"01")))},
    )

    def labels(self) -> Any:
        if self.odds(0.2):
            return self.rng.choice(WRONG)
        if self.odds(0.1):
            return {f"k{number}": "v" for number in range(self.rng.choice((65, 1000)))}
        keys = ("a", "a\r\nb", "", "x" * 300, "é", "__proto__", "a b", "mesh-status")
        return {self.rng.choice(keys): self.rng.choice(("v", *BAD_TEXTS)) for _ in range(self.rng.randrange(5))}

    def document(self) -> bytes:
        """An instance as a JSON document, as it is kept in etcd and in the local file."""
        if self.odds(0.4):
            return dump(self.good())
        text = dump(self.bad())
        match self.rng.randrange(12):
            case 0:
                return text[: self.rng.randrange(len(text))]
            case 1:
                return self.twice(text)
            case 2:
                place = self.rng.randrange(len(text))
                return text[:place] + bytes([self.rng.randrange(256)]) + text[place + 1 :]
            case 3 if self.odds(0.02):
                return self.rng.choice(
                    (b"[" * DEEP, b'{"a":' * DEEP, b'{"extra":' + b"[" * DEEP + b"]" * DEEP + b"," + text[1:])
                )
            case 4 if self.odds(0.02):
                return b'{"extra":"' + b"x" * 1_000_000 + b'",' + text[1:]
            case 5 if self.odds(0.3):
                return self.rng.choice((b"", b"null", b"5", b'"x"', b"[]", b"{}", b"\xff", b"\xef\xbb\xbf" + text, b" " * 100))
        return text

    def twice(self, text: bytes) -> bytes:
        """``text`` with one key more, that is there already."""
        key, value = self.rng.choice((("host", self.host()), ("port", self.rng.choice(BAD_PORTS)), ("host", "10.66.66.66")))
        return text[:-1] + b"," + dump({key: value})[1:]

    # -- Consul

    def entry(self) -> bytes:
        """One line of Consul's listing. What a registration cannot bring about, brackets that do not match, is left out."""
        fields = self.good() if self.odds(0.4) else self.bad()
        good = str(fields.get("id", "")).startswith("good-")
        node = {"Address": "10.1.1.1"} if good else self.rng.choice(({"Address": "10.1.1.1"}, {"Address": self.host()}, {}))
        named = {"ID": "id", "Address": "host", "Port": "port"}
        service = {key: fields[name] for key, name in named.items() if name in fields}
        if self.odds(0.9):
            service["Meta"] = self.meta(fields)
        entry: dict[str, Any] = {"Node": node, "Service": service, "Checks": []}
        if good:
            return dump(entry)
        if self.odds(0.15):
            entry[self.rng.choice(list(entry))] = self.rng.choice(WRONG)
        if self.odds(0.1):
            entry.pop(self.rng.choice(list(entry)))
        text = dump(entry)
        return (
            text[:-1] + b',"Service":' + dump({"ID": "bad-twice", "Address": self.host(), "Port": 81}) + b"}"
            if self.odds(0.1)
            else text
        )

    def meta(self, fields: dict[str, Any]) -> Any:
        """Of a registration of ours, of Spring's, or of nobody's."""
        good = str(fields.get("id", "")).startswith("good-")
        meta: dict[str, Any] = {"mesh-generation": "g"} if self.odds(0.5) else {}
        if fields.get("scheme") == "https":
            meta["secure"] = "true"
        if not good:
            more = self.rng.choice((b'{"secure":"true"}', b"{", b"[]", b"[" * 400, b'{"zone":5}', b'{"mesh-status":"odd"}'))
            keys = ("zone", "weight", "version", "mesh-status", "mesh-namespace", "mesh-more-1", "x", "a\r\nb")
            meta |= {self.rng.choice(keys): self.rng.choice(("1", "²", *BAD_TEXTS)) for _ in range(self.rng.randrange(3))}
            meta |= {"mesh-more-0": more.decode()} if self.odds(0.3) else {}
            return self.rng.choice(WRONG) if self.odds(0.05) else meta
        return meta

    # -- etcd

    def pair(self, prefix: bytes, document: bytes, revision: int) -> dict[str, str]:
        """A key with its value; mostly under the id that the document has."""
        try:
            name = str(json.loads(document)["id"]).encode("utf-8", "replace")
        except (ValueError, LookupError, TypeError, RecursionError):
            name = b"bad-%d" % self.made
        if not name.startswith(b"good-") and self.odds(0.1):
            name = self.rng.choice((b"", b"bad/../x", b"\xff", b"bad\r\nX"))
        return {"key": b64(prefix + name), "value": b64(document), "mod_revision": str(revision)}


def b64(text: bytes) -> str:
    """As etcd's gateway has it."""
    return base64.b64encode(text).decode()
