"""Files that only this user may touch."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from meshlib.files import check_directory, check_file, locked, make_directory


def test_all_missing_directories_are_private(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700, 0o700]


def test_a_link_of_ours_to_a_directory_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    check_directory(tmp_path / "link")


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a directory"):
        check_directory(tmp_path / "file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_modes_of_a_file(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    with pytest.raises(ValueError, match="can be used by others"):
        check_file(file, file.lstat())


def given_up_after(lock: Path) -> float:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="another process has held"), locked(lock, timeout=0.05):
        pass
    return time.monotonic() - start


def test_a_held_lock_is_given_up_on_in_time(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", timeout=1):
        assert min(given_up_after(tmp_path / "lock") for _ in range(5)) < 1, "the machine may be slow, but not always"
    with locked(tmp_path / "lock", timeout=0):
        pass


def test_the_lock_excludes_threads(tmp_path: Path) -> None:
    inside, most, never = 0, 0, threading.Event()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "lock", timeout=60):
                inside += 1
                most = max(most, inside)
                never.wait(0.001)  # or the others hardly ever come to it, lock or no lock
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_child_forked_under_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    """Without the explicit unlock the child's copy of the file would hold it for as long as the child lives."""
    done, hold = os.pipe()
    with locked(tmp_path / "lock", timeout=1):
        child = os.fork()
        if child == 0:
            os.close(hold)
            os.read(done, 1)
            os._exit(0)
    try:
        with locked(tmp_path / "lock", timeout=0):
            pass
    finally:
        os.close(hold)
        os.close(done)
        os.waitpid(child, 0)
