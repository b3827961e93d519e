"""TaskRegistry: the tasks that a worker can run, and the adapters that let the engine drive their handlers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast, overload

from zart_core.decorators import DurableFunction
from zart_core.duration import Duration, positive_micros
from zart_core.engine.orders import StepOrder
from zart_core.engine.run import Run
from zart_core.engine.steps import StepOptions
from zart_core.handler import TaskHandler, TaskTypes, check_task_name, data_types, task_types
from zart_core.payload import Payloads
from zart_core.records import ExecutionFailure
from zart_core.registration import Registration, registration
from zart_core.retry import RetryConfig
from zart_core.step_definition import options_of, plain_function
from zart_core.step_reference import find_step
from zart_core.task_context import TaskContext, TypesOf, make_current

Data = TypeVar("Data")


class TaskRegistry:
    """Handlers by task name. Each worker has one; there is no global registry."""

    def __init__(self) -> None:
        self._bodies: dict[
            str, dict[str, HandlerBody]
        ] = {}  # by task, then by version, in the order they were registered
        self._recurrences: dict[str, Registration] = {}

    @overload
    def register(self, name: str, handler: TaskHandler[Any, Any], /) -> None: ...

    @overload
    def register(self, handler: TaskHandler[Any, Any], /) -> None: ...

    def register(self, name: str | TaskHandler[Any, Any], handler: TaskHandler[Any, Any] | None = None, /) -> None:
        """Add a handler, under ``name`` or under the handler's own.

        Handlers of one task that differ in their ``version`` stand side by side: an execution goes on with the version it was first
        run with, a new one runs with the version registered last. One whose version is not registered runs with the last too.

        Raises ``ValueError`` for a name that is blank, reserved, or differs from the handler's own, for a version that is there
        already, and for attributes that make no sense; ``TypeError`` for what is not an instance of a ``TaskHandler`` with an async
        ``run(self, ctx, data)``.
        """
        given = None if isinstance(name, TaskHandler) else name
        checked = _check_handler(name if isinstance(name, TaskHandler) else handler)
        task = _task_name(given, checked)
        body = HandlerBody(task, checked, self._types_of)
        versions = self._bodies.get(task, {})
        if body.version in versions:
            known = versions[body.version].handler
            raise ValueError(f"a handler for task {task!r} is registered already: {known!r} (version {body.version!r})")
        self._bodies[task] = {**versions, body.version: body}

    def recurring(
        self,
        name: str,
        task: str | type[TaskHandler[Data, Any]] | DurableFunction[Data, Any],
        data: Data | None = None,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
        overlap: Literal["skip", "cancel", "allow"] = "skip",
        id_template: str | None = None,
        catch_up: Literal["one", "all", "skip"] = "one",
    ) -> None:
        """Have every worker of this registry register a recurrence when it starts; see :meth:`zart_core.DurableScheduler.recurring`.

        So a deployment brings its schedules along: the first worker stores a new or changed one, the others find it. A schedule that is left
        out of a later deployment goes on until it is stopped, and one that was stopped by hand stays so. The task need not be one
        of this registry's: any worker starts executions, those that know the task run them.

        Raises what that method raises, and ``ValueError`` for a name that is there already.
        """
        asked = registration(
            name,
            task,
            data,
            cron=cron,
            every=every,
            timezone=timezone,
            overlap=overlap,
            id_template=id_template,
            catch_up=catch_up,
        )
        asked.encoded(Payloads())  # refused here; a worker encodes it anew, with the codec that it has
        if name in self._recurrences:
            raise ValueError(f"recurring {name!r} is registered already")
        self._recurrences[name] = asked

    @property
    def recurrences(self) -> tuple[Registration, ...]:
        """What was given to :meth:`recurring`."""
        return tuple(self._recurrences.values())

    def body(self, task: str, version: str | None = None) -> HandlerBody:
        """The adapter of a registered task: of ``version`` where that is registered, else the last. ``KeyError`` for an unknown task."""
        versions = self._bodies[task]
        return versions.get(version or "") or versions[next(reversed(versions))]

    def _types_of(self, task: object) -> TaskTypes:
        """What is known of a task that a handler starts as its child: one given by name may be registered here."""
        if isinstance(task, str) and task in self._bodies:
            body = self.body(task)
            return TaskTypes(task, body.data_type, body.output_type, body.timeout)
        return task_types(task)

    def __contains__(self, task: object) -> bool:
        return task in self._bodies

    def __iter__(self) -> Iterator[str]:
        return iter(self._bodies)

    def __len__(self) -> int:
        return len(self._bodies)


class HandlerBody:
    """A handler as the engine drives it: decodes the input, gives the handler its context, encodes the output."""

    def __init__(self, task: str, handler: TaskHandler[Any, Any], types: TypesOf) -> None:
        self._types = types
        cls: type[TaskHandler[Any, Any]] = type(handler)
        self.handler = handler
        self.task = task
        self.version = str(handler.version)
        retries = handler.max_retries
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ValueError(f"max_retries of task {task!r} must be a whole number of at least 0, not {retries!r}")
        self.max_retries = retries
        given = handler.timeout
        self.timeout = None if given is None else positive_micros(given, what=f"the timeout of task {task!r}")
        self.handles_failure = cls.on_failure is not TaskHandler[Any, Any].on_failure
        self.data_type, self.output_type = data_types(cls)
        self._scope = inspect.unwrap(handler.run)

    def begin(self, run: Run, data: bytes) -> None:
        """Decode the input for whoever asks for it."""
        what = f"the input of execution {run.execution_id!r} (task {self.task!r})"
        run.begin(run.payloads.decode(data, self.data_type, what=what))

    def step(self, order: StepOrder) -> tuple[Callable[..., Any], StepOptions]:
        """The function and the options of a step that was sent here. ``LookupError``: this code has no such step."""
        fn = find_step(order.fn, self.handler)
        own = options_of(order.name, fn, {})
        options = StepOptions(
            retry=own.retry if order.retry is None else RetryConfig.of(order.retry),
            timeout=order.timeout,
            scope="per_attempt" if order.per_attempt else "global",
            at_most_once=order.at_most_once,
        )
        return plain_function(fn), options

    async def run(self, run: Run) -> bytes:
        ctx = self._context(run)
        output = await self.handler.run(ctx, ctx.data)
        return self._encode(run, output)

    async def on_failure(self, run: Run, failure: ExecutionFailure) -> bytes:
        ctx = self._context(run)
        output = await self.handler.on_failure(ctx, ctx.data, failure)
        return self._encode(run, output)

    def _context(self, run: Run) -> TaskContext:
        self.begin(run, run.claimed.input)
        ctx = TaskContext(run, scope=self._scope, types=self._types, handler=self.handler)
        make_current(ctx)
        return ctx

    def _encode(self, run: Run, output: object) -> bytes:
        what = f"the output of execution {run.execution_id!r} (task {self.task!r})"
        data = run.payloads.encode(output, what=what)
        if self.output_type is not Any:
            # Whoever waits for it decodes it by the same type: refuse here, where the handler can be blamed.
            run.payloads.decode(data, self.output_type, what=what)
        return data


def _check_handler(handler: object) -> TaskHandler[Any, Any]:
    if isinstance(handler, type):
        hint = ": register an instance, e.g. " + handler.__name__ + "()" if issubclass(handler, TaskHandler) else ""
        raise TypeError(f"{handler.__qualname__} is a class, not a TaskHandler instance{hint}")
    if not isinstance(handler, TaskHandler):
        raise TypeError(f"a handler must be an instance of a TaskHandler subclass, not {type(handler).__qualname__}")
    checked = cast("TaskHandler[Any, Any]", handler)
    cls = type(checked)
    for method, count in (("run", 3), ("on_failure", 4)):
        function = getattr(cls, method)
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{cls.__qualname__}.{method} must be an async function")
        parameters = list(inspect.signature(function).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        needed = [p for p in positional if p.default is p.empty]
        if not variadic and (len(positional) < count or len(needed) > count):
            wanted = "(self, ctx, data)" if method == "run" else "(self, ctx, data, failure)"
            raise TypeError(f"{cls.__qualname__}.{method} must take {wanted}")
    return checked


def _task_name(given: object, handler: TaskHandler[Any, Any]) -> str:
    own = handler.name
    if given is None:
        if own is None:
            cls = type(handler).__qualname__
            raise ValueError(f"{cls} has no name: give it one (name = ...) or register(name, handler)")
        given = own
    elif own is not None and own != given:
        raise ValueError(f"{type(handler).__qualname__} calls itself {own!r} but is registered as {given!r}")
    return check_task_name(given)
