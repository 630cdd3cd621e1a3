"""The clock and the loop that the other tests stand on."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from meshlib.testing import FakeClock, VirtualLoop, run_virtual


def test_a_clock_does_not_go_backwards() -> None:
    clock = FakeClock(5.0)
    clock.advance(0.5)
    assert clock() == 5.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_a_long_sleep_takes_no_real_time() -> None:
    clock, start = FakeClock(), time.monotonic()
    run_virtual(asyncio.sleep(86_400 * 30), clock=clock)
    assert clock() == pytest.approx(1000.0 + 86_400 * 30)
    assert time.monotonic() - start < 3600


@pytest.mark.parametrize("start", [0.0, 1000.0, 1.7e9])
def test_timers_go_off_in_order_at_their_time(start: float) -> None:
    clock = FakeClock(start)
    seen: list[tuple[str, float]] = []

    async def one(name: str, *delays: float) -> None:
        for delay in delays:
            await asyncio.sleep(delay)
            seen.append((name, round(clock() - start, 3)))

    async def main() -> None:
        await asyncio.gather(one("a", 3, 3), one("b", 1, 4), one("c", 0.5, 0.1))

    run_virtual(main(), clock=clock)
    assert seen == [("c", 0.5), ("c", 0.6), ("b", 1), ("a", 3), ("b", 5), ("a", 6)]


def test_time_outs() -> None:
    clock = FakeClock()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.Event().wait()

    run_virtual(main(), clock=clock)
    assert clock() == 1007.0


def test_a_thread_takes_no_time_of_the_clock() -> None:
    clock = FakeClock()

    async def main() -> list[float]:
        ticking = asyncio.create_task(asyncio.sleep(60))
        at = []
        for _ in range(3):
            await asyncio.to_thread(time.sleep, 0.01)
            at.append(clock())
        await ticking
        return [*at, clock()]

    assert run_virtual(main(), clock=clock) == [1000.0, 1000.0, 1000.0, 1060.0]


def test_a_thread_without_any_timer() -> None:
    assert run_virtual(asyncio.to_thread(lambda: 42)) == 42


def test_a_thread_that_waits_for_a_timer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.testing.clock.THREADS", 0.01)

    async def main() -> bool:
        event = threading.Event()
        asyncio.get_running_loop().call_later(100, event.set)
        return await asyncio.to_thread(event.wait, 60)

    assert run_virtual(main()) is True


def test_another_thread_wakes_it() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(result.set_result, "woken"))
        thread.start()
        try:
            return await result
        finally:
            thread.join()

    assert run_virtual(main()) == "woken"


def test_the_loop_is_closed_with_its_selector() -> None:
    loop = VirtualLoop(FakeClock())
    loop.close()
    assert loop.is_closed()
