"""The asyncio shell: performs effects in the caller's task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent import futures
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeAlias

from meshlib.background import BACKGROUND
from meshlib.flow.abstraction import TIMED, Aside, AsyncSender, Await, Call, Close, Effect, Next, Race, Send, Sleep, Wait
from meshlib.flow.blocking import collected, forget


async def arun(proceed: Next, call: Call, sender: AsyncSender) -> Any:
    """Perform ``proceed(call)`` in this task and return its response. Other responses it asked for are closed."""
    flow = proceed(call)
    answers: list[Any] = []
    try:
        effect = next(flow)
        while True:
            try:
                if type(effect) is Send:
                    answer = await _asend(effect.call, sender)
                    answers.append(answer)
                else:
                    answer = await _aperform(effect, sender, answers)
            except BaseException as problem:  # noqa: BLE001 - it is the flow's to handle, cancellation included
                effect = flow.throw(problem)
            else:
                effect = flow.send(answer)
    except StopIteration as done:
        if answers and (len(answers) > 1 or answers[0] is not done.value):
            try:
                await _adrop(answers, sender, done.value)
            except BaseException:  # cancelled: nobody gets the answer
                call.close()
                await _adrop([each for each in answers if each is done.value], sender)
                raise
        if call.closers:
            sender.hold(done.value, call)
        return done.value
    except BaseException:
        call.close()
        await _adrop(answers, sender)
        raise


async def _asend(call: Call, sender: AsyncSender) -> Any:
    try:
        answer = await sender.send(call)
    except BaseException:
        call.close()
        raise
    if call.endpoint is not None or call.closers is not None:
        sender.hold(answer, call)
    return answer


async def _first(tasks: set[asyncio.Task[Any]], timeout: float | None) -> Iterable[asyncio.Task[Any]]:  # noqa: ASYNC109
    return (await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED))[0]


First: TypeAlias = Callable[[set[asyncio.Task[Any]], float | None], Awaitable[Iterable[asyncio.Task[Any]]]]


async def araced(race: Race, sender: AsyncSender, first: First = _first) -> Any:
    """The first answer of ``race``. ``first(tasks, timeout)`` waits until some of them are done, and returns them."""
    running = set[asyncio.Task[Any]]()
    try:
        winner = await _awinner(race, sender, running, first)
    except BaseException:
        await _lose(running, sender)
        raise
    try:
        await _lose(running, sender)
    except BaseException:  # cancelled: nobody gets the answer
        await sender.drop(winner)
        raise
    return winner


async def _awinner(race: Race, sender: AsyncSender, running: set[asyncio.Task[Any]], first: First) -> Any:
    """The first answer; ``running`` has the tasks whose answers, if they come to any, are to be dropped."""
    calls = iter(race.calls)
    failure: BaseException | None = None
    winner: asyncio.Task[Any] | None = None
    try:
        while winner is None:
            call = next(calls, None)
            if call is not None:
                running.add(asyncio.create_task(arun(race.proceed, call, sender)))
            elif not running:
                assert failure is not None, "a race without calls"
                raise failure
            for task in await first(running, None if call is None else race.delay):
                running.discard(task)
                if task.cancelled() or task.exception() is not None:
                    failure = asyncio.CancelledError() if task.cancelled() else task.exception()
                elif winner is None:
                    winner = task
                else:
                    running.add(task)  # a dead heat: the second is closed with the losers
        return winner.result()
    finally:
        failure = None  # its traceback leads here: no cycle


async def _lose(tasks: set[asyncio.Task[Any]], sender: AsyncSender) -> None:
    """Cancel ``tasks`` and close what they have come to. A cancellation meanwhile is passed on after that, and at once to
    those that take their time over theirs."""
    cancelled = False
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError:
            cancelled = True
    await _adrop([task.result() for task in tasks if not task.cancelled() and task.exception() is None], sender)
    if cancelled:
        raise asyncio.CancelledError


async def _aperform(effect: Effect, sender: AsyncSender, answers: list[Any]) -> Any:
    own = getattr(sender, "perform", None)
    if own is not None and type(effect) in TIMED:
        return collected(await own(effect), effect, answers)
    if type(effect) is Sleep:
        return await asyncio.sleep(effect.seconds)
    if type(effect) is Wait:
        return await _await(effect)
    if type(effect) is Close:
        forget(answers, effect.response)
        await sender.drop(effect.response)
        return None
    if type(effect) is Aside:
        aside = effect
        return BACKGROUND.begin(lambda: _aaside(aside, sender))
    if type(effect) is Await:
        return await effect.awaitable
    assert type(effect) is Race, effect
    answers.append(await araced(effect, sender))
    return answers[-1]


async def _aaside(effect: Aside, sender: AsyncSender) -> None:
    await sender.drop(await arun(effect.proceed, effect.call, sender))


async def _adrop(answers: list[Any], sender: AsyncSender, keep: Any = None) -> None:
    async with AsyncExitStack() as stack:  # each, also if closing another fails or is cancelled
        for answer in answers:
            if answer is not keep:
                stack.push_async_callback(sender.drop, answer)


async def _await(effect: Wait) -> bool:
    # Not asyncio.wrap_future: cancelling its wrapper cancels the source, which other callers wait for too.
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_: futures.Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(woken.set)

    effect.future.add_done_callback(wake)
    with suppress(TimeoutError):
        async with asyncio.timeout(effect.timeout):
            await woken.wait()
    return effect.future.done()
