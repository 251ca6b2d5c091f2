"""Many requests to one server at a time, for a caller that waits for one answer after the other.

The requests live in an event loop in a thread of their own, so that waiting for them can be interrupted at once, and
a caller may have an event loop already (a notebook). When the caller has enough, what is under way is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, TypeVar

from evalspec.errors import RunError
from evalspec.execute.backends.server.http import Client, RequestFailed

C = TypeVar("C")
T = TypeVar("T")

GIVE_UP_AFTER = 20
"""So many requests that failed one after the other, each asked again and again, end the run."""
END_SECONDS = 1.0


class Traffic:
    """An event loop in a thread of its own, which ends with `end` or with the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="evalspec-server", daemon=True)
        self._thread.start()

    def end(self, client: Client) -> None:
        """Drop what is under way, close a client and end the thread, which is waited for a moment: asyncio complains of
        requests that are still there when the interpreter ends. It may be called from within the thread."""

        async def leave() -> None:
            under_way = asyncio.all_tasks() - {asyncio.current_task()}
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            await client.close()
            self._loop.stop()

        leaving = leave()
        try:
            asyncio.run_coroutine_threadsafe(leaving, self._loop)
        except RuntimeError:  # the interpreter is on its way out
            leaving.close()
            return
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its value; an interruption of the wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def answers(
        self, calls: Iterable[C], ask: Callable[[C], Coroutine[Any, Any, T]], client: Client
    ) -> Iterator[tuple[C, T | RequestFailed]]:
        """Each call with its answer, or with why it has none, as they come; as many at a time as the settings allow.

        Calls begin in their order. Raises RunError when the server is gone for all of them, and whatever `ask` raises
        but RequestFailed.
        """
        flow = _Flow(iter(calls), ask, client)
        running = asyncio.run_coroutine_threadsafe(flow.run(), self._loop)
        try:
            while (found := flow.done.get()) is not None:
                yield found
            running.result()
        finally:
            running.cancel()


class _Flow(Generic[C, T]):
    """One pass over some calls: workers that take the next one each, and the queue of what came of them."""

    def __init__(self, calls: Iterator[C], ask: Callable[[C], Coroutine[Any, Any, T]], client: Client) -> None:
        self.calls, self.ask, self.client = calls, ask, client
        self.done: queue.SimpleQueue[tuple[C, T | RequestFailed] | None] = queue.SimpleQueue()
        self.failed = 0
        """Requests that failed since one was answered."""

    async def run(self) -> None:
        """All calls; ends with None in the queue, whatever happens."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.client.settings.concurrency):
                    group.create_task(self._work())
        except ExceptionGroup as group_of:
            raise group_of.exceptions[0] from None  # the first; the others were told to stop for its sake
        finally:
            self.done.put(None)

    async def _work(self) -> None:
        for call in self.calls:
            try:
                answer = await self.ask(call)
                self.failed = 0
                self.done.put((call, answer))
            except RequestFailed as problem:
                self.done.put((call, problem))
                if problem.passing:
                    await self._still_there(problem)

    async def _still_there(self, problem: RequestFailed) -> None:
        """Raise RunError where nobody gets an answer any more. One that nobody could answer is no sign of that, so the
        server is asked for something that costs it nothing."""
        self.failed += 1
        gone = self.failed >= GIVE_UP_AFTER
        if not gone:
            before = self.failed
            gone = not await self.client.answers() and self.failed >= before
        if gone:
            last = f"the last {self.failed} requests all failed" if self.failed > 1 else "a request failed"
            raise RunError(f"models.{self.client.name}: {last}: {problem}")
