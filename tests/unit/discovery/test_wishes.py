"""What an operator asks of processes that serve an instance. The others are real processes: locks are the kernel's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.discovery.siblings import MEMBERS, REGISTRAR, Record, Siblings, file_of
from meshlib.discovery.wishes import group_of, groups, holder, tell
from meshlib.model import Instance, Status
from meshlib.settings import Settings
from tests.servers.sibling import Sibling

SHOP = Instance("shop", "shop-1", "10.0.0.1", 8080)


@pytest.fixture(scope="module")
def other() -> Iterator[Sibling]:
    with Sibling() as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=str(tmp_path / "state"), registry="consul://10.0.0.9:8500")


@pytest.fixture
def file(settings: Settings) -> Path:
    return file_of(settings, SHOP)


def test_nobody_is_here(settings: Settings) -> None:
    assert groups(settings) == []
    assert group_of(settings, SHOP) is None


def test_another_process_is_found_and_told(settings: Settings, file: Path, other: Sibling) -> None:
    assert other.ask(file, "look")[0]
    group = group_of(settings, SHOP)
    assert group is not None
    assert (group.alive, group.registrar, group.record.id) == (True, other.process.pid, "shop-1")
    tell(group, Status.DRAINING)
    assert other.ask(file, "look")[3] == "draining"
    assert other.ask(file, "look")[0], "it is still the registrar: looking took nothing from it"
    other.ask(file, "leave")
    other.ask(file, "close")
    assert group_of(settings, SHOP) is None


def test_looking_is_no_membership(settings: Settings, file: Path, other: Sibling) -> None:
    other.ask(file, "look")
    groups(settings)
    assert other.ask(file, "leave") is True, "it was the last"
    other.ask(file, "close")


def test_a_dead_group_is_none(settings: Settings, file: Path, other: Sibling) -> None:
    other.ask(file, "look")
    other.ask(file, "die")
    (group,) = groups(settings)
    assert (group.alive, group.registrar) == (False, 0)
    assert group_of(settings, SHOP) is None


@pytest.mark.parametrize(
    ("there", "found"), [(["consul://ten:8500"], True), (["consul://ten:8500", "consul://eleven:8500"], False)]
)
def test_a_registry_that_is_written_in_another_way(there: list[str], found: bool, settings: Settings, other: Sibling) -> None:
    files = [file_of(settings.changed(registry=url), SHOP) for url in there]
    for file in files:
        other.ask(file, "look")
    assert (group_of(settings, SHOP) is not None) is found, "as long as there is no doubt"
    for file in files:
        other.ask(file, "die")


def test_another_instance_is_not_meant(settings: Settings, file: Path, other: Sibling) -> None:
    other.ask(file, "look")
    assert group_of(settings, Instance("shop", "shop-2", "10.0.0.1", 8080)) is None
    assert group_of(settings, Instance("shop", "shop-1", "10.0.0.1", 8081)) is None
    other.ask(file, "die")


def test_a_file_that_others_may_have_written_is_left_alone(settings: Settings, file: Path, other: Sibling) -> None:
    other.ask(file, "look")
    file.chmod(0o666)
    assert groups(settings) == []
    file.chmod(0o600)
    other.ask(file, "die")


def test_within_the_process_that_serves_its_locks_are_kept(settings: Settings, file: Path, other: Sibling) -> None:
    ours = Siblings(file, Record("shop-1", "g"))
    assert ours.look().registrar
    group = group_of(settings, SHOP)
    assert group is not None
    assert group.registrar == os.getpid()
    tell(group, Status.MAINTENANCE)
    assert other.ask(file, "look")[:1] == [False], "ours is the registrar still"
    assert ours.look().record.status is Status.MAINTENANCE
    other.ask(file, "die")
    ours.close()


def test_who_has_a_lock(file: Path, other: Sibling) -> None:
    other.ask(file, "look")
    handle = os.open(file, os.O_RDWR)
    try:
        assert holder(handle, REGISTRAR) == holder(handle, MEMBERS) == other.process.pid
        assert holder(handle, 7) == 0
    finally:
        os.close(handle)
    other.ask(file, "die")
