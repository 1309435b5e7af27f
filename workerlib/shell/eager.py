"""Tasks that run up to their first suspension at once, where CPython 3.11's wait for the next turn of the loop.

Most functions of a worker never suspend: their answer is written before the loop turns. Scheduling a Task for each cost
7 µs of a 25 µs call here. CPython 3.12 has `eager_start` for this; 3.11 has the documented hooks for other task
implementations (asyncio docs, "Extending"), which this file uses and no other does. Dispatching a bare coroutine step
outside any task was tried and rejected: `asyncio.timeout` and `TaskGroup` need a current task.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from workerlib.core.compiled import compiled
from workerlib.shell.forks import leave

# Documented in "Extending asyncio", with any task-like object; the stubs of mypy only know Task.
enter_task: Callable[[asyncio.AbstractEventLoop, Any], None] = asyncio._enter_task  # noqa: SLF001
leave_task: Callable[[asyncio.AbstractEventLoop, Any], None] = asyncio._leave_task  # noqa: SLF001
_register_task: Callable[[Any], None] = asyncio._register_task  # noqa: SLF001
_unregister_task: Callable[[Any], None] = asyncio._unregister_task  # noqa: SLF001


def first_step_in_python(
    enter: Callable[[asyncio.AbstractEventLoop, Any], object],
    leave: Callable[[asyncio.AbstractEventLoop, Any], object],
    loop: asyncio.AbstractEventLoop,
    task: Any,
    coroutine: Coroutine[Any, Any, Any],
    /,
) -> tuple[bool, Any]:
    """Runs a coroutine up to its first suspension as `task`: whether it has ended, and its result or what it awaits.

    Raises what the coroutine does.
    """
    enter(loop, task)
    try:
        return False, coroutine.send(None)
    except StopIteration as stop:
        return True, stop.value
    finally:
        leave(loop, task)


# In C the end of a coroutine is no exception: that takes a quarter of the time.
first_step = compiled("first_step", first_step_in_python)


def _raise(fatal: BaseException) -> None:
    raise fatal


Done = Callable[[Any, BaseException | None], None]
"""Called once with the coroutine's result, or with its error."""


class EagerTask(asyncio.Future[None]):
    """Drives a coroutine as a Task does, but its first step runs inside `start`.

    A coroutine that ends in its first step leaves its outcome in `value` and `failure`, and the task can be started
    again with another one, unless somebody has asked it to tell of its end: making a task costs more than that step.
    """

    __slots__ = ("_context", "_coroutine", "reusable", "value")  # these four as slots for the C part
    _task_names = 0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._loop_ = loop
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._context: contextvars.Context | None = None
        self._done_: Done | None = None
        self._waiting_for: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancels = 0
        self._name = ""
        self.reusable = True
        """Whether it can be started again when it has ended in its first step: nobody waits for it or cancelled it."""
        self.value: Any = None
        self.failure: BaseException | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> bool:
        """Runs the coroutine up to its first suspension. Call it where no task is running.

        True when it has ended with a `value`, and this task can be started again. Else look at `ended`: when it has,
        see `failure` and `reusable`; when it has not, call `follow`.
        """
        # What `_step` does, less all that cannot be in a first step: this is a third of the cost of a short call.
        # The C part does the same for the shortcut of `workerlib.serving`.
        self._coroutine = coroutine
        self._context = context
        try:
            ended, value = context.run(first_step, enter_task, leave_task, self._loop_, self, coroutine)
        except BaseException as raised:
            if asyncio.current_task(self._loop_) is not None:
                raise  # another task is running: this one was not entered, and the coroutine has not run
            return self.end_at_once(None, raised)  # a task's outcome may be any error; its owner decides
        if not ended:
            self.suspend(value)
            return False
        return self.end_at_once(value, None)

    def end_at_once(self, value: Any, failure: BaseException | None) -> bool:
        """The coroutine has ended in its first step; returns what `start` does."""
        self.value, self.failure = value, failure
        self._coroutine = None
        if failure is None and self.reusable:
            return True
        self._finish()
        return False

    def follow(self, done: Done) -> None:
        """Gives the outcome of a coroutine that has suspended to `done`, which must not raise."""
        self._done_ = done
        _register_task(self)

    @property
    def ended(self) -> bool:
        """Whether the coroutine has ended."""
        return self._coroutine is None

    def _step(self, error: BaseException | None = None) -> None:
        """A step after the first."""
        loop, coroutine = self._loop_, self._coroutine
        assert coroutine is not None
        if self._must_cancel:
            self._must_cancel = False
            error = asyncio.CancelledError()
        self._waiting_for = None
        enter_task(loop, self)
        try:
            waited = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            self.value = stop.value
        except BaseException as raised:  # noqa: BLE001 - a task's outcome may be any error; its owner decides
            self.failure = raised
        else:
            leave_task(loop, self)
            self.suspend(waited)
            return
        # Outside of the `except` blocks: an error that the owner makes must not have the result as its context.
        leave_task(loop, self)
        self._coroutine = None
        self._finish()

    def _finish(self) -> None:
        """Tells of the end whoever waits for it."""
        failure = self.failure
        if isinstance(failure, (KeyboardInterrupt, SystemExit)):
            leave(failure)
            # Out of `run_forever`, also where a transport's callback started this step.
            self._loop_.call_soon(_raise, failure)
        failure = None  # its traceback holds this frame
        if (not self.reusable or self._done_ is not None) and not self.done():
            super().set_result(None)
        if self._done_ is not None:
            _unregister_task(self)
            failure, self.failure = self.failure, None
            self._done_(self.value, failure)

    def add_done_callback(self, fn: Any, *, context: contextvars.Context | None = None) -> None:
        self.reusable = False
        super().add_done_callback(fn, context=context)

    def suspend(self, waited: Any) -> None:
        """The coroutine goes on when what it awaits is done."""
        blocking = getattr(waited, "_asyncio_future_blocking", None)
        if waited is None:  # asyncio.sleep(0): give the loop one turn
            self._loop_.call_soon(self._step, context=self._context)
        elif blocking and waited.get_loop() is self._loop_ and waited is not self:
            waited._asyncio_future_blocking = False  # noqa: SLF001 - the protocol of awaiting a future
            waited.add_done_callback(self._wake, context=self._context)
            self._waiting_for = waited
            if self._must_cancel and waited.cancel():
                self._must_cancel = False
        else:
            wrong = RuntimeError(f"a worker function awaited {waited!r}, which is no future of this event loop")
            self._loop_.call_soon(self._step, wrong, context=self._context)

    def _wake(self, waited: "asyncio.Future[Any]") -> None:
        error = asyncio.CancelledError() if waited.cancelled() else waited.exception()
        # The coroutine takes result or error from the future itself; thrown in only for cancellation, as Task does.
        self._step(error if isinstance(error, asyncio.CancelledError) else None)

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002 - messages of cancellations are deprecated
        if self._coroutine is None:
            return False
        self.reusable = False
        self._cancels += 1
        if self._waiting_for is not None and self._waiting_for.cancel():
            return True
        self._must_cancel = True
        return True

    def cancelling(self) -> int:
        return self._cancels

    def uncancel(self) -> int:
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def get_coro(self) -> Any:
        return self._coroutine

    def get_context(self) -> contextvars.Context | None:
        return self._context

    def get_name(self) -> str:
        if not self._name:
            EagerTask._task_names += 1
            self._name = f"call-{EagerTask._task_names}"
        return self._name

    def set_name(self, value: object) -> None:
        self._name = str(value)
