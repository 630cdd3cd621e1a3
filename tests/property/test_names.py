"""Names and instances from anywhere: parsed to something safe, or refused in our own words."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import httpx2
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import ConfigError, InvalidAnswer
from meshlib.model import Instance, ServiceUrl, parse_host

label = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
namespaces = st.one_of(st.just(""), st.tuples(label, label).map(".".join))
ids = st.from_regex(r"[!-~]{1,40}", fullmatch=True)
service_urls = st.builds(ServiceUrl, label, namespaces, st.one_of(st.just(""), ids))
printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9](\.[a-z][a-z0-9]{0,5}){0,3}", fullmatch=True),
)
instances = st.builds(
    Instance.parse,
    st.fixed_dictionaries(
        {"service": label, "id": ids, "host": hosts, "port": st.integers(1, 65535)},
        optional={
            "scheme": st.sampled_from(["http", "https"]), "version": printable, "zone": printable,
            "weight": st.integers(0, 10_000), "status": st.sampled_from(["up", "draining", "maintenance"]),
            "generation": printable, "namespace": namespaces,
            "labels": st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,9}", fullmatch=True), printable, max_size=5),
        },
    ),
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["up", "http", "10.0.0.1"])
)
jsons = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=8,
)
FIELDS = ["service", "id", "host", "port", "scheme", "version", "zone", "weight", "labels", "status", "generation", "namespace"]
near_instances = st.dictionaries(st.sampled_from(FIELDS), st.one_of(jsons, label, hosts, st.integers(0, 70_000)), max_size=12)

NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


@given(service_urls)
def test_a_service_url_survives_its_text(url: ServiceUrl) -> None:
    assert ServiceUrl.parse(str(url)) == url
    assert ServiceUrl.parse(f"mesh://{url}") == url
    assert str(ServiceUrl.parse(str(url))) == str(url)


@given(st.one_of(st.text(), st.text("abz09.-_/: K\u212a\u0130"), st.text().map("mesh://".__add__)))
def test_any_text_is_a_service_url_or_a_config_error(text: str) -> None:
    try:
        url = ServiceUrl.parse(text)
    except ConfigError as refused:
        assert "\n" not in str(refused)
        assert "\r" not in str(refused)
    else:
        assert ServiceUrl.parse(str(url)) == url
        assert str(url).isascii()
        assert str(url).isprintable()


@given(instances)
def test_an_instance_survives_its_fields(one: Instance) -> None:
    assert Instance.parse(one.fields()) == one
    assert hash(Instance.parse(one.fields())) == hash(one)
    assert ServiceUrl.parse(str(one.url)) == one.url


@given(st.one_of(jsons, near_instances))
def test_anything_is_an_instance_or_an_invalid_answer(fields: Any) -> None:
    try:
        one = Instance.parse(fields)
    except InvalidAnswer as refused:
        assert "\n" not in str(refused)
    else:
        assert Instance.parse(one.fields()) == one
        check_host(one.host)
        assert 1 <= one.port <= 65535


def check_host(host: str) -> None:
    """A literal address, or a name that no resolver takes for one, that a URL can hold and that stays as it is."""
    assert not re.search(r"[\s@/?#%\\]", host)
    assert host.isascii()
    try:
        ipaddress.ip_address(host)
    except ValueError:
        assert not NUMERIC.fullmatch(host.removesuffix(".").rpartition(".")[2])
    url = httpx2.URL(scheme="http", host=host, port=8000)
    assert url.raw_host.decode() == host
    assert url.raw_path == b"/"
    assert url.userinfo == b""


@given(st.one_of(st.text(), st.text("0123456789abcdefx.:[]%@-_/ \r\n１٣"), hosts))
def test_any_host_is_safe_or_refused(text: str) -> None:
    try:
        host = parse_host(text)
    except ValueError:
        return
    check_host(host)
    assert parse_host(host) == host
