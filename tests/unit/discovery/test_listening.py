"""What the system says of listening sockets, on a copy of its files."""

from __future__ import annotations

from pathlib import Path

from meshlib.discovery.listening import Listener, listeners

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(address: str, state: str, inode: int) -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 100 0\n"


def made(proc: Path) -> Path:
    (proc / "fd").mkdir(parents=True)
    (proc / "net").mkdir()
    for number, target in enumerate(["socket:[10]", "socket:[11]", "socket:[12]", "socket:[13]", "/dev/null", "socket:[99]"]):
        (proc / "fd" / str(number)).symlink_to(target)
    (proc / "net" / "tcp").write_text(
        HEAD
        + line("0100007F:1F90", "0A", 10)
        + line("00000000:1F91", "0A", 11)
        + line("0100007F:1F92", "01", 12)  # a connection
        + line("0100007F:1F93", "0A", 50)  # of another process
    )
    (proc / "net" / "tcp6").write_text(HEAD + line("00000000000000000000000001000000:1F94", "0A", 13))
    return proc


def test_those_of_this_process_that_listen(tmp_path: Path) -> None:
    assert listeners(made(tmp_path / "proc")) == {0: Listener(8080, True), 1: Listener(8081), 3: Listener(8084, True)}


def test_a_machine_without_ipv6(tmp_path: Path) -> None:
    proc = made(tmp_path / "proc")
    (proc / "net" / "tcp6").unlink()
    assert set(listeners(proc) or ()) == {0, 1}


def test_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert listeners(tmp_path / "proc") is None
