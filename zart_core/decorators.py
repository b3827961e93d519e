"""The macro layer: ``zart_step`` and ``zart_durable`` make steps and handlers of plain functions."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from zart_core.call_site import user_site
from zart_core.duration import Duration, positive_micros
from zart_core.engine.replay import Site
from zart_core.handler import TaskHandler, check_task_name
from zart_core.step_definition import StepDefinition, StepKeywords, options_of, plain_function
from zart_core.task_context import TaskContext, current_context

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
T_co = TypeVar("T_co", covariant=True)
Data = TypeVar("Data")
Output = TypeVar("Output")


# --- steps ----------------------------------------------------------------------------------------------------------


class StepCall(Coroutine[Any, Any, T_co]):
    """A call of a ``zart_step``, to be awaited. Inside an execution that is a durable step, outside a plain call of the function.

    A coroutine like that of any async function: ``gather`` and ``TaskGroup.create_task`` take it.
    """

    __slots__ = ("_args", "_begun", "_name", "_site", "_step", "arguments")

    def __init__(
        self, step: StepDefinition, name: str, args: tuple[Any, ...], arguments: dict[str, Any], site: Site
    ) -> None:
        self._step = step
        self._name = name
        self._args = args
        self.arguments = arguments
        self._site = site
        self._begun: Coroutine[Any, Any, T_co] | None = None  # only for who drives it by hand: a task

    @property
    def name(self) -> str:
        """What the step is called: the definition's name with its fields filled in, or the one given to :meth:`named`."""
        return self._name

    def named(self, name: str) -> StepCall[T_co]:
        """The same call under another name, for a step that is used more than once in a run."""
        return StepCall(self._step, name, self._args, self.arguments, self._site)

    def __await__(self) -> Generator[Any, Any, T_co]:
        return cast("Generator[Any, Any, T_co]", self._run().__await__())

    def send(self, value: Any, /) -> Any:
        return self._driven().send(value)

    def throw(self, kind: Any, value: BaseException | object = None, trace: TracebackType | None = None, /) -> Any:
        # Only ever an exception object: the other forms are of the past.
        return self._driven().throw(kind)

    def close(self) -> None:
        if self._begun is not None:
            self._begun.close()

    def _driven(self) -> Coroutine[Any, Any, T_co]:
        if self._begun is None:
            self._begun = self._run()
        return self._begun

    def __repr__(self) -> str:
        return f"<StepCall {self._name!r}>"

    async def _run(self) -> Any:
        context = current_context()
        if context is not None:
            return await context.run_call(self._site, self._name, self._step, self._args)
        value = self._step.fn(*self._args)
        return await value if inspect.isawaitable(value) else value


class ZartStep(StepDefinition, Generic[P, T_co]):
    """A function whose calls are durable steps: what :func:`zart_step` makes. ``fn`` is the function itself."""

    def __init__(self, template: str, fn: Callable[..., Any], keywords: StepKeywords) -> None:
        super().__init__(fn, keywords)
        self.template = template
        self._signature = inspect.signature(fn)
        self._static = "{" not in template and "}" not in template
        functools.update_wrapper(cast(Any, self), fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> StepCall[T_co]:
        """The call, to be awaited, or to be given another name first."""
        return self._call(user_site(), args, kwargs)

    def _call(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall[T_co]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        step: StepDefinition = self
        if bound.kwargs:  # keyword-only: steps take their arguments by position
            step = StepDefinition(functools.partial(self.fn, **bound.kwargs), self.keywords)
        return StepCall(step, self.name_for(bound.arguments), bound.args, bound.arguments, site)

    def name_for(self, arguments: dict[str, Any]) -> str:
        """The step's name with its fields filled from ``arguments``."""
        return self.template if self._static else self.template.format_map(arguments)

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> ZartStep[P, T_co]: ...

    @overload
    def __get__(
        self: ZartStep[Concatenate[S, Q], T_co], instance: S, owner: type[Any] | None = None
    ) -> ZartStep[Q, T_co]: ...

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> ZartStep[Any, T_co]:
        """A step that is a method is bound to its object like any method."""
        if instance is None:
            return self
        return _BoundStep(self, instance)

    def __repr__(self) -> str:
        return f"<zart_step {self.template!r}>"


Q = ParamSpec("Q")


class _BoundStep(ZartStep[P, T_co]):
    """A step that is a method, with its object. Fields of its name may use the object too: ``{self.region}``."""

    def __init__(self, step: ZartStep[Any, T_co], instance: Any) -> None:
        self._unbound = step
        self._instance = instance
        super().__init__(step.template, step.fn.__get__(instance), step.keywords)
        self.bound_to = instance

    def name_for(self, arguments: dict[str, Any]) -> str:
        owner = next(iter(self._unbound._signature.parameters))
        return super().name_for({owner: self._instance, **arguments})


class _StepDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> ZartStep[P, T]: ...

    @overload
    def __call__(self, fn: Callable[P, T], /) -> ZartStep[P, T]: ...


def zart_step(name: str, **options: Unpack[StepKeywords]) -> _StepDecorator:
    """Make a durable step of a function, plain or async::

        @zart_step("charge-card-{order_id}", retry="exponential(3, 2s)", timeout="30s")
        async def charge_card(order_id: str, amount: int) -> Receipt: ...

        receipt = await charge_card(order.id, 100)
        receipt = await charge_card(order.id, 100).named("charge-again")

    ``{field}`` in the name is filled from the arguments (``{order.id}`` and ``{index:03}`` work too). ``options`` are those of
    ``TaskContext.step``. Outside of an execution the call, awaited, is that of the plain function. ``ctx.step`` and its kin take such a
    step for their function; the name given there is used, and options given there win.

    Raises ``ValueError`` for a name that uses fields the function does not have, and for options that make no sense.
    """
    if not isinstance(name, str):
        raise TypeError('zart_step needs a name: @zart_step("send-mail-{user_id}")')

    def decorate(fn: Callable[..., Any]) -> ZartStep[Any, Any]:
        if not callable(fn):
            raise TypeError(f"zart_step {name!r} decorates functions, not {type(fn).__name__}")
        step: ZartStep[Any, Any] = ZartStep(name, fn, options)
        _check_fields(name, fn)
        options_of(name, plain_function(fn), options)
        return step

    return cast(_StepDecorator, decorate)


def _check_fields(template: str, fn: Callable[..., Any]) -> None:
    parameters = inspect.signature(fn).parameters
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"the step name {template!r} is not understood: {error}") from None
    for field in fields:
        first = field.split(".")[0].split("[")[0]
        if first not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(
                f"the step name {template!r} uses {{{first}}}, which is no parameter of {fn.__qualname__} (it has: {known})"
            )


# --- handlers -------------------------------------------------------------------------------------------------------


class DurableFunction(TaskHandler[Data, Output]):
    """A handler made of a function: what :func:`zart_durable` makes. ``fn`` is the function itself."""

    fn: Callable[..., Any]


class _DurableDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[TaskContext, Data], Awaitable[Output]], /) -> DurableFunction[Data, Output]: ...

    @overload
    def __call__(self, fn: Callable[[Data], Awaitable[Output]], /) -> DurableFunction[Data, Output]: ...


def zart_durable(
    name: str, *, version: str = "1", max_retries: int = 0, timeout: Duration | None = None
) -> _DurableDecorator:
    """Make a task of an async function of ``(data)`` or ``(ctx, data)``::

        @zart_durable("checkout", timeout="10m")
        async def checkout(data: Order) -> Receipt:
            receipt = await charge_card(data.id, data.amount)
            await zart_core.sleep("settle", "60s")
            return receipt

        registry.register(checkout)
        await durable.start(checkout, order)

    The options are those of :class:`TaskHandler`. What is yielded is a handler, an instance of a class of its own. Raises ``ValueError``
    for a name or option that makes no sense, ``TypeError`` for a function of another shape.
    """
    if not isinstance(name, str):
        raise TypeError('zart_durable needs a name: @zart_durable("checkout")')
    attributes: dict[str, Any] = {
        "name": check_task_name(name),
        "version": version,
        "max_retries": max_retries,
        "timeout": timeout,
    }
    if timeout is not None:
        positive_micros(timeout, what=f"the timeout of task {name!r}")

    def decorate(fn: Callable[..., Any]) -> DurableFunction[Any, Any]:
        return _durable(fn, attributes)

    return cast(_DurableDecorator, decorate)


_WITH_CONTEXT: Final = 2


def _durable(fn: Callable[..., Any], attributes: dict[str, Any]) -> DurableFunction[Any, Any]:
    if not inspect.iscoroutinefunction(fn):
        raise TypeError(f"zart_durable makes a task of an async function, not of {fn!r}")
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in inspect.signature(fn).parameters.values() if p.kind not in by_name or p.default is p.empty]
    # With a default it could not be told whether the first of two is the context or the input.
    if len(parameters) not in (1, _WITH_CONTEXT) or any(
        p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in parameters
    ):
        raise TypeError(f"the durable function {fn.__qualname__} must take (data) or (ctx, data), without defaults")
    with_context = len(parameters) == _WITH_CONTEXT

    async def run(self: TaskHandler[Any, Any], ctx: TaskContext, data: Any) -> Any:
        return await (fn(ctx, data) if with_context else fn(data))

    # The handler's types are read from run's annotations, and those that are texts are resolved where the function stands.
    written = fn.__annotations__
    data_name = parameters[-1].name
    run.__annotations__ = {
        "data": written.get(data_name, Any),
        **({"return": written["return"]} if "return" in written else {}),
    }
    signature = inspect.signature(run)
    functools.update_wrapper(run, fn, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    run.__signature__ = signature  # type: ignore[attr-defined]
    body = {**attributes, "run": run, "fn": staticmethod(fn), "__module__": fn.__module__, "__doc__": fn.__doc__}
    cls = cast("type[DurableFunction[Any, Any]]", type(fn.__name__, (DurableFunction,), body))
    cls.__qualname__ = fn.__qualname__
    return cls()
