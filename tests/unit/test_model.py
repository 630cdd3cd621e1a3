"""Facts from outside are parsed once, and what is hostile stays outside (threats 12 and 13)."""

import pytest

from meshlib.errors import ConfigError, InvalidAnswer
from meshlib.model import MAX_LABELS, SHARED, Instance, ServiceUrl, Snapshot, Status, parse_host, registrable_name

GOOD = {"service": "orders", "id": "orders-1", "host": "10.0.0.5", "port": 8080}

HOSTILE = [
    "2130706433", "127.1", "0x7f.1", "0x7f000001", "1.2.3.0x4", "017700000001", "x@evil", "10.0.0.5\r\nX: 1", "a b", "",
    "١٢٧.0.0.1", "１０.0.0.5", "10.0.0.5:80", "[::1", "::1]", "fe80::1%eth0", "fe80::1%\r\nX: 1", "%2e", "a%2eb", "..",
    "a..b", ".a", "evil/..", "evil?x", "evil#x", "evil\\x", "-a.b", "[10.0.0.5]", "[host]", "[[::1]]", "\u212a.example", "a" * 64, "a." * 130, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTILE)
def test_hostile_hosts_are_refused(host: str) -> None:
    with pytest.raises(ValueError):
        parse_host(host)
    with pytest.raises(InvalidAnswer):
        Instance.parse({**GOOD, "host": host})


@pytest.mark.parametrize(
    ("host", "canonical"),
    [("10.0.0.5", "10.0.0.5"), ("::1", "::1"), ("[::1]", "::1"), ("0:0::1", "::1"), ("Orders.Local", "orders.local"),
     ("db_1", "db_1"), ("1a", "1a"), ("a.b.", "a.b.")],
)  # fmt: skip
def test_good_hosts(host: str, canonical: str) -> None:
    assert parse_host(host) == canonical


@pytest.mark.parametrize(
    ("field", "value"),
    [("port", 0), ("port", 65536), ("port", True), ("port", "８０"), ("port", "+80"), ("port", " 80"), ("port", "8_0"),
     ("port", 80.0), ("port", None), ("port", 1 << 40), ("weight", -1), ("weight", 10_001), ("scheme", "ftp"),
     ("scheme", ["http"]), ("id", "a b"), ("id", ""), ("id", "a\n"), ("service", "Orders"), ("service", "a.b"), ("status", "dead"),
     ("status", ["up"]), ("labels", ["x"]), ("labels", "x"), ("version", "1\n2"), ("zone", 7), ("namespace", "x/../y"),
     ("namespace", "shop")],
)  # fmt: skip
def test_bad_fields(field: str, value: object) -> None:
    with pytest.raises(InvalidAnswer):
        Instance.parse({**GOOD, field: value})


@pytest.mark.parametrize("fields", [None, [], "x", 7, {}, [["id", 1]]])
def test_not_even_fields(fields: object) -> None:
    with pytest.raises(InvalidAnswer):
        Instance.parse(fields)  # type: ignore[arg-type]


def test_the_error_shows_no_control_characters() -> None:
    with pytest.raises(InvalidAnswer) as caught:
        Instance.parse({**GOOD, "id": "a\r\nb", "host": "x\r\ny"})
    assert "\r" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_are_unusable_are_left_out() -> None:
    labels = {"good": "yes", "bad key": "x", "bad": "a\nb", "number": 1, 7: "x", "": "x"}
    assert dict(Instance.parse({**GOOD, "labels": labels}).labels) == {"good": "yes"}


def test_equal_labels_are_one_mapping_and_equal_texts_one_text() -> None:
    def parsed(number: int) -> Instance:
        said = {
            "version": "".join("1.4"),
            "zone": "".join(["eu-", "1"]),
            "labels": {"".join(["te", "am"]): "".join(["sh", "op"])},
        }
        return Instance.parse({**GOOD, "id": f"orders-{number}", **said})

    one, other = parsed(1), parsed(2)
    assert one.labels is other.labels
    assert (one.version is other.version, one.zone is other.zone) == (True, True)
    assert {**one.labels} == {"team": "shop"}


def test_labels_that_nobody_shares_are_still_right() -> None:
    many = [Instance.parse({**GOOD, "labels": {"pod": f"pod-{number}", "team": "shop"}}) for number in range(3 * SHARED)]
    assert [dict(one.labels) for one in many] == [{"pod": f"pod-{number}", "team": "shop"} for number in range(3 * SHARED)]


def test_labels_are_bounded() -> None:
    assert len(Instance.parse({**GOOD, "labels": {f"k{n}": "v" for n in range(1000)}}).labels) == MAX_LABELS


def test_fields_leave_out_defaults_and_nothing_else() -> None:
    assert Instance.parse(GOOD).fields() == {**GOOD, "scheme": "http", "weight": 1}
    odd = Instance.parse({**GOOD, "service": "up", "id": "up", "host": "up", "zone": "up", "status": "draining"})
    assert Instance.parse(odd.fields()) == odd


def test_identity() -> None:
    one = Instance.parse({**GOOD, "generation": "g1"})
    assert hash(one) == hash(Instance.parse(one.fields()))
    assert one.key != Instance.parse({**GOOD, "generation": "g2"}).key
    assert one.key == Instance.parse({**GOOD, "generation": "g1", "weight": 7, "status": "draining"}).key
    assert Instance.parse({**GOOD, "host": "::1"}).netloc == "[::1]:8080"
    assert str(Instance.parse({**GOOD, "namespace": "shop.prod"}).url) == "shop.prod.orders/orders-1"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("orders", ("orders", "", "")), ("mesh://Orders", ("orders", "", "")), ("shop.prod.orders", ("orders", "shop.prod", "")),
     ("mesh://shop.prod.orders/o-1", ("orders", "shop.prod", "o-1")), ("orders/a/b", ("orders", "", "a/b"))],
)  # fmt: skip
def test_service_urls(text: str, parsed: tuple[str, str, str]) -> None:
    assert ServiceUrl.parse(text) == ServiceUrl(*parsed)


@pytest.mark.parametrize(
    "text", ["", "a.b", "a b", "-a", "a-", "a..b", "\u212a", "a\n", "http://orders", "orders/a b", "x" * 64]
)
def test_unusable_service_urls(text: str) -> None:
    with pytest.raises(ConfigError, match="for example"):
        ServiceUrl.parse(text)


def test_the_namespace_of_the_settings_is_used_where_none_is_named() -> None:
    assert ServiceUrl.parse("orders", namespace="a.b").namespace == "a.b"
    assert ServiceUrl.parse("c.d.orders", namespace="a.b").namespace == "c.d"
    assert ServiceUrl.parse(ServiceUrl("orders"), namespace="a.b").namespace == "a.b"
    assert ServiceUrl.parse("orders/one").name == ServiceUrl("orders")


@pytest.mark.parametrize(("name", "better"), [("orders", None), ("Orders", "orders"), ("my_app", "my-app"), ("9x", "s-9x")])
def test_registrable_names(name: str, better: str | None) -> None:
    assert registrable_name(name) == better


def test_the_age_of_a_snapshot_is_never_negative() -> None:
    assert Snapshot(ServiceUrl("orders"), confirmed=100.0).age(90.0) == 0.0
    assert Status("up") is Status.UP


def test_a_number_beyond_printing() -> None:
    with pytest.raises(InvalidAnswer):
        Instance.parse({**GOOD, "port": 10**5000})
