"""The control plane's thread: one per process, started late, stopped clean."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from meshlib import worker as worker_module
from meshlib.threads import DaemonExecutor
from meshlib.worker import Worker
from tests.servers.base import eventually

PATIENCE = 30.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test-worker")
    yield worker
    worker.stop()
    assert "test-worker" not in [thread.name for thread in threading.enumerate()]


def threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("test-worker")


async def name() -> str:
    return threading.current_thread().name


def test_nothing_exists_before_it_is_used(worker: Worker) -> None:
    assert (worker.running, threads()) == (False, 0)
    worker.stop()
    assert not worker.running


def test_it_starts_once_under_many_threads(worker: Worker) -> None:
    barrier = threading.Barrier(16)
    loops: list[object] = []

    def use() -> None:
        barrier.wait()
        loops.append(worker.loop())

    users = [threading.Thread(target=use) for _ in range(16)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert (len(set(map(id, loops))), threads()) == (1, 1)


def test_work_runs_on_its_thread(worker: Worker) -> None:
    assert worker.spawn(name).result(PATIENCE) == "test-worker"
    assert worker.running


def test_an_exception_of_spawned_work_is_the_callers(worker: Worker) -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        worker.spawn(fail).result(PATIENCE)


def test_an_exception_of_reported_work_is_logged_and_the_loop_goes_on(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise KeyError("x")

    worker.report(fail)
    assert worker.spawn(name).result(PATIENCE) == "test-worker"
    assert [record.getMessage() for record in caplog.records] == ["a background task of meshlib failed"]
    assert caplog.records[0].exc_info


def test_stopping_cancels_what_runs_and_then_does_the_last(worker: Worker) -> None:
    seen: list[str] = []
    started: Future[None] = Future()

    async def long() -> None:
        started.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async def last() -> None:
        seen.append("last")

    worker.report(long)
    started.result(PATIENCE)
    worker.stop(last=last)
    assert (seen, worker.running, threads()) == (["cancelled", "last"], False, 0)
    assert worker.spawn(name).result(PATIENCE) == "test-worker", "it can be started again"


def test_a_last_that_fails_is_logged_and_it_stops_all_the_same(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    async def last() -> None:
        raise KeyError("x")

    worker.loop()
    worker.stop(last=last)
    assert threads() == 0
    assert [record.getMessage() for record in caplog.records] == ["stopping the control plane failed"]


def test_async_generators_are_closed_at_the_stop(worker: Worker) -> None:
    closed = threading.Event()

    async def numbers():  # type: ignore[no-untyped-def]
        try:
            yield 1
        finally:
            closed.set()

    generator = numbers()

    async def take() -> int:
        return await anext(generator)

    assert worker.spawn(take).result(PATIENCE) == 1
    worker.stop()
    assert closed.is_set()


def test_a_loop_that_is_blocked_does_not_block_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    worker, release, blocked = Worker("blocked-worker"), threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        release.wait(PATIENCE)

    worker.report(block)
    assert blocked.wait(PATIENCE)
    worker.stop(0.01)
    assert "the thread blocked-worker did not stop" in caplog.text
    release.set()


def test_stopping_from_many_threads(worker: Worker) -> None:
    for _ in range(20):
        worker.loop()
        stoppers = [threading.Thread(target=worker.stop) for _ in range(4)]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        assert not worker.running


def test_spawning_while_it_is_stopped_is_never_an_error(worker: Worker) -> None:
    problems: list[object] = []
    done = threading.Event()

    def spawn() -> None:
        while not done.is_set():
            try:
                if wait([worker.spawn(name)], PATIENCE).not_done:
                    problems.append("forgotten: neither done nor cancelled")
            except BaseException as problem:
                problems.append(problem)

    spawner = threading.Thread(target=spawn)
    spawner.start()
    for _ in range(100):
        eventually(lambda: worker.running)
        worker.stop()
    done.set()
    spawner.join()
    assert not problems


@pytest.mark.parametrize("closed", [True, False], ids=["stopped", "being stopped"])
def test_what_it_is_given_too_late_is_done_when_it_is_started_again(worker: Worker, closed: bool) -> None:
    """However often another thread stops it in between."""
    stoppers: list[threading.Thread] = []

    def late() -> Coroutine[Any, Any, str]:
        if len(stoppers) < 3:
            stoppers.append(threading.Thread(target=worker.stop))
            stoppers[-1].start()
            eventually(lambda: not worker.running)
            if closed:
                stoppers[-1].join()
        return name()

    assert worker.spawn(late).result(PATIENCE) == "test-worker"
    for stopper in stoppers:
        stopper.join()


def test_what_is_collected_in_the_middle_of_spawning_may_spawn(worker: Worker) -> None:
    spawned = threading.Event()

    def collected() -> None:
        with worker._lock:
            worker.spawn(name).result(PATIENCE)
        spawned.set()

    threading.Thread(target=collected, daemon=True).start()
    assert spawned.wait(PATIENCE)


def test_another_process_starts_its_own(worker: Worker) -> None:
    parents = worker.loop()
    worker._pid += 1
    assert not worker.running
    child = worker.loop()
    assert child is not parents
    assert not parents.is_closed(), "abandoned, not closed"
    worker.stop()
    parents.call_soon_threadsafe(parents.stop)
    for thread in threading.enumerate():
        if thread.name == "test-worker":
            thread.join(PATIENCE)


def test_tasks_are_not_collected_as_garbage(worker: Worker) -> None:
    """The loop holds its tasks weakly, and a task that waits for an event of its own is held by nobody else."""
    import gc

    ended: Future[None] = Future()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set_result(None)

    worker.report(wait)
    worker.spawn(name).result(PATIENCE)
    gc.collect()
    assert not ended.done()


# -- the executor


def test_the_executor_performs() -> None:
    executor = DaemonExecutor(2, "test-blocking")
    assert executor.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 7, 0).result(PATIENCE)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(print)


def test_the_executor_uses_a_thread_again_and_at_most_its_number() -> None:
    executor = DaemonExecutor(3, "test-blocking")
    idents = set()
    for _ in range(20):
        idents.add(executor.submit(threading.get_ident).result(PATIENCE))
        eventually(lambda: not executor._idle.empty(), within=PATIENCE)  # it is free a moment after its result is there
    assert len(idents) == 1
    barrier = threading.Barrier(4)
    waiting = [executor.submit(barrier.wait, PATIENCE) for _ in range(3)]
    queued = executor.submit(threading.get_ident)
    assert not queued.done()
    barrier.wait(PATIENCE)
    for each in waiting:
        each.result(PATIENCE)
    assert queued.result(PATIENCE)
    executor.shutdown()


def test_a_cancelled_job_is_not_done() -> None:
    executor = DaemonExecutor(1, "test-blocking")
    free, started, done = threading.Event(), threading.Event(), []
    executor.submit(lambda: (started.set(), free.wait(PATIENCE)))
    started.wait(PATIENCE)
    job = executor.submit(done.append, 1)
    assert job.cancel()
    free.set()
    executor.submit(int).result(PATIENCE)
    assert not done
    executor.shutdown()


# -- the end of the interpreter


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_executor_that_works_after_the_main_thread_has_ended() -> None:
    """And the negative control: the standard library's does not."""
    done = run("""
        import atexit
        from concurrent.futures import ThreadPoolExecutor
        from meshlib.threads import DaemonExecutor
        ours, theirs = DaemonExecutor(1, "ours"), ThreadPoolExecutor(1)
        ours.submit(int).result(), theirs.submit(int).result()
        def late():
            print(ours.submit(lambda: "ours").result())
            try:
                theirs.submit(int)
            except RuntimeError:
                print("theirs refuses")
        atexit.register(late)
    """)
    assert (done.stdout.split("\n")[:2], done.stderr) == (["ours", "theirs refuses"], "")


def test_the_interpreter_ends_clean_with_a_worker_at_work() -> None:
    done = run("""
        import asyncio, time
        from meshlib.worker import Worker
        worker = Worker()
        async def busy():
            while True:
                await asyncio.to_thread(int)
                await asyncio.sleep(0)
        async def idle():
            await asyncio.Event().wait()
        worker.report(busy), worker.report(idle)
        async def nothing(): pass
        worker.spawn(nothing).result()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_fork_leaves_the_parent_alone_and_has_its_own() -> None:
    done = run("""
        import asyncio, gc, os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from meshlib.worker import Worker
        worker = Worker()
        async def idle():
            await asyncio.Event().wait()
        async def pid():
            return os.getpid()
        worker.report(idle)
        assert worker.spawn(pid).result(30) == os.getpid()
        child = os.fork()
        if child == 0:
            assert not worker.running
            assert worker.spawn(pid).result(30) == os.getpid()
            gc.collect()
            worker.stop()
            gc.collect()
            raise SystemExit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert worker.spawn(pid).result(30) == os.getpid()
        worker.stop()
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_task_that_has_not_begun_leaves_nothing_behind_when_it_is_cancelled(recwarn: pytest.WarningsRecorder) -> None:
    async def inner() -> None:
        await asyncio.sleep(60)

    async def wrapper(coroutine: Coroutine[Any, Any, None]) -> None:
        await coroutine

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(wrapper(inner()))
        await worker_module._cancel_all()
        return task

    task = asyncio.run(main())
    assert task.cancelled()
    del task
    gc.collect()
    assert not [one for one in recwarn.list if "inner' was never awaited" in str(one.message)], "what others left is theirs"
