"""The executor when no thread can be started, as Python 3.12 has it while the interpreter ends."""

from __future__ import annotations

import threading

import pytest

from meshlib.threads import DaemonExecutor


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_without_any_thread_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = DaemonExecutor(2, "test")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert executor.submit(threading.current_thread).result(0) is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(0)


def test_threads_that_are_there_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = DaemonExecutor(2, "test")
    first = executor.submit(threading.current_thread).result(30)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert executor.submit(threading.current_thread).result(30) is first
    executor.shutdown()
