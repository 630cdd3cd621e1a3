"""What the doctor works out without a registry; the rest is seeded in tests/integration/test_doctor.py."""

from __future__ import annotations

import asyncio
import os
import re
from email.utils import formatdate
from pathlib import Path

import pytest

from meshlib.doctor import Case, examine, local
from meshlib.doctor.case import Outcome
from meshlib.doctor.examination import load
from meshlib.doctor.local import filesystem
from meshlib.doctor.registry import apart
from meshlib.errors import RegistryUnavailable
from meshlib.settings import Settings

MOUNTS = """\
22 1 0:21 / / rw,relatime - ext4 /dev/root rw
23 22 0:22 / /home rw shared:1 - nfs4 server:/home rw
24 23 0:23 / /home/me/local rw - xfs /dev/sdb rw
25 22 0:24 / /mnt/with\\040space rw - fuse.sshfs host: rw
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib", "ext4"), ("/home/you", "nfs4"), ("/home/me/local/state", "xfs"), ("/homestead", "ext4"),
     ("/mnt/with space/x", "fuse.sshfs")],
)  # fmt: skip
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert filesystem(Path(path), MOUNTS) == kind


def test_a_network_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    case = Case(Settings(state_dir=str(tmp_path)), {})
    monkeypatch.setattr(local, "_mounts", lambda: "22 1 0:21 / / rw - ext4 /dev/root rw\n")
    assert asyncio.run(local.state_directory(case)).findings == ()
    monkeypatch.setattr(local, "_mounts", lambda: "22 1 0:21 / / rw - nfs4 server:/ rw\n")
    assert [one.code for one in asyncio.run(local.state_directory(case)).findings] == ["state.remote_disk"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(local.os, "statvfs", lambda _: full)
    assert [one.code for one in asyncio.run(local.state_directory(Case(Settings(state_dir=str(tmp_path)), {}))).findings] == [
        "state.full"
    ]


@pytest.mark.parametrize(
    ("theirs", "before", "after", "skew"),
    [
        (1000.0, 1000.2, 1000.4, 0.0),
        (1000.0, 1002.9, 1003.0, 0.0),  # it may have been 1000.99 there, and two seconds are allowed
        (1000.0, 1004.0, 1004.1, -3.0),
        (1003.0, 1000.0, 1000.5, 2.5),
        (1003.0, 1000.0, 1009.0, 0.0),  # a slow answer says nothing
    ],
)
def test_clocks_by_a_date_in_whole_seconds(theirs: float, before: float, after: float, skew: float) -> None:
    assert apart(formatdate(theirs, usegmt=True), before, after) == pytest.approx(skew)


def test_no_date_is_no_skew() -> None:
    assert apart("", 0.0, 1.0) is apart("yesterday", 0.0, 1.0) is None


def test_every_wrong_setting_is_told_and_left_out() -> None:
    environ = {
        "MESH_TTL": "soon",
        "MESH_PORT": "99999",
        "MESH_TLS_CERT": __file__,
        "MESH_ZONE": "eu",
        "MESH_REGISTRY": "consl://x",
    }
    settings, wrong = load(environ, {"weight": "heavy"}, "command line")
    assert settings.zone == "eu"
    assert settings.registry.scheme == "local"
    assert {one.what.partition(" ")[0] for one in wrong} == {
        "MESH_TTL",
        "MESH_PORT",
        "MESH_TLS_KEY",
        "MESH_REGISTRY",
        "MESH_WEIGHT",
    }
    assert any("(from command line)" in one.what for one in wrong)


def test_a_wrong_registry_is_not_asked(tmp_path: Path) -> None:
    report = asyncio.run(examine(environ={"MESH_REGISTRY": "consl://x", "MESH_STATE_DIR": str(tmp_path / "state")}))
    assert [one.code for one in report.findings] == ["settings.invalid"]
    assert all(report.checks[name].skipped for name in ("registry", "rights", "key-value store", "policies", "services"))


def test_a_check_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_case: Case) -> Outcome:
        raise RegistryUnavailable("in the middle of it")

    monkeypatch.setattr("meshlib.doctor.examination.CHECKS", {"broken": broken, "extras": local.extras})
    report = asyncio.run(examine(environ={"MESH_REGISTRY": f"memory://{tmp_path}"}))
    assert [one.code for one in report.findings] == ["broken.failed"]
    assert report.checks["extras"].findings == ()


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    report = asyncio.run(examine(environ={"MESH_REGISTRY": f"memory://{tmp_path}", "MESH_REGISTRY_TOKEN": "hush"}))
    assert "hush" not in str(report)
    assert [one.source for one in report.settings if one.name == "MESH_REGISTRY_TOKEN"] == ["environment"]


def test_versions_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local, "_requirements", lambda: [("cli", "rich", ">=999"), ("x", "no-such-library", ">=1"), ("y", "typer", ">=0")]
    )
    found = asyncio.run(local.extras(Case(Settings(), {})))
    (one,) = found.findings
    assert (one.code, "rich" in one.what, one.hint) == ("extras.version", True, "pip install 'meshlib-cloud[cli]'")
    assert "typer" in found.detail


def test_the_requirements_of_the_distribution_are_read() -> None:
    assert {"cli", "consul", "flask"} <= {extra for extra, _, _ in local._requirements()}


def test_every_code_is_in_the_docs() -> None:
    """And no other."""
    root = Path(__file__).parents[3]
    source = "".join(path.read_text() for path in (root / "meshlib" / "doctor").glob("*.py"))
    page = (root / "docs" / "cli.md").read_text().partition("## What the doctor finds")[2]
    codes = set(re.findall(r'Finding\(\s*"([a-z_]+\.[a-z_]+)"', source))
    assert codes == set(re.findall(r"`([a-z_]+\.[a-z_]+)`", page))
    assert len(codes) >= 25
