"""Recurrences: when a schedule's ticks come, and what is done about those that are due.

Nothing here reads a clock or a store: a worker asks its backend what is due, and :func:`plan` says what to do about it. What is
planned is then done in one transaction, fenced by the schedule's revision, so any number of workers may plan the same tick.

The rule for clocks that are put forward and back is cron's: an expression that fixes both the minute and the hour (neither
field begins with ``*``) means the time on the wall. Ticks in an hour that is left out come together at its end, those in an hour
that comes twice come in the first of the two. Any other expression means lengths of time, and follows the clock as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Literal, Protocol, cast, get_args
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim
from msgspec import Struct

from zart_core.duration import FOREVER, SECOND, Duration, instant, micros, moment, spoken
from zart_core.identity import check_text
from zart_core.records import DueRecurrence, Firing

Overlap = Literal["skip", "cancel", "allow"]
CatchUp = Literal["one", "all", "skip"]

PLACEHOLDER: Final = "{occurrence}"

GRACE: Final = 10 * SECOND
"""A lone tick that is later than this was missed: nobody was there to start it."""
BATCH: Final = 100
"""Most missed ticks that one transaction starts with ``catch_up="all"``."""
COUNTED: Final = 1_000
"""Most ticks of one outage that are counted one by one where the expression has to be walked; beyond it there were at least so many."""
SHORTEST: Final = 10_000
"""The shortest interval: each tick is a transaction."""

_LONGEST_ID: Final = 200
_DIGITS: Final = 12
"""Of an occurrence's number, that an id has to leave room for."""
_LONGEST_CRON: Final = 200
_EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""From where an expression is looked at when it is registered: within fifty years it has to come true."""


class Definition(Struct, frozen=True, kw_only=True):
    """What a schedule says, as it is stored: JSON. Lengths of time are microseconds."""

    cron: str | None = None
    every: int | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: CatchUp = "one"
    id_template: str
    timeout: int | None = None
    """The task's, where its class is known."""

    @property
    def timing(self) -> Timing:
        """When its ticks come. Raises ``ValueError`` where this machine does not know the zone."""
        return _timing(self.cron, self.every, self.timezone)

    @property
    def id_parts(self) -> tuple[str, str]:
        """What stands before and after the number in an id."""
        before, _, after = self.id_template.partition(PLACEHOLDER)
        return before, after

    def times_like(self, other: Definition) -> bool:
        """Whether the ticks of both come at the same times."""
        return (self.cron, self.every, self.timezone) == (other.cron, other.every, other.timezone)


def define(
    name: str,
    *,
    cron: str | None,
    every: Duration | None,
    timezone: str,
    overlap: str,
    id_template: str | None,
    catch_up: str,
    timeout: int | None,
) -> Definition:
    """A checked definition. Raises ``ValueError`` and ``TypeError`` that name the field."""
    check_name(name)
    what = f"recurring {name!r}"
    if (cron is None) == (every is None):
        raise ValueError(f"{what}: give cron or every, one of the two")
    length = None
    if every is not None:
        length = micros(every, what=f"{what}: every")
        if length < SHORTEST:
            raise ValueError(f"{what}: every must be at least {spoken(SHORTEST)}, not {every!r}")
    elif not isinstance(cron, str):
        raise TypeError(f"{what}: cron must be text like '0 2 * * *', not {type(cron).__name__}")
    for field, value, known in (("overlap", overlap, get_args(Overlap)), ("catch_up", catch_up, get_args(CatchUp))):
        if value not in known:
            raise ValueError(
                f"{what}: {field} must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, not {value!r}"
            )
    if not isinstance(timezone, str):
        raise TypeError(f"{what}: timezone must be a name like 'Europe/Berlin', not {type(timezone).__name__}")
    definition = Definition(
        cron=None if cron is None else " ".join(cron.split()),
        every=length,
        timezone=timezone,
        overlap=cast(Overlap, overlap),
        catch_up=cast(CatchUp, catch_up),
        id_template=_check_template(f"{name}-{PLACEHOLDER}" if id_template is None else id_template, what),
        timeout=timeout,
    )
    try:
        zone_of(timezone)
        timing = definition.timing
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if timing.first(instant(_EPOCH)) is None:
        raise ValueError(f"{what}: {'cron' if every is None else 'every'} {cron or every!r} never comes")
    return definition


def check_name(name: object) -> str:
    """``name`` when it can name a schedule: 1 to 200 printable characters, not blank."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a schedule must be text, not {type(name).__name__}")
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_ID:
        raise ValueError(f"{name!r} cannot name a schedule: names are text of 1 to {_LONGEST_ID} printable characters")
    return name


def _check_template(template: object, what: str) -> str:
    if not isinstance(template, str):
        raise TypeError(f"{what}: id_template must be text, not {type(template).__name__}")
    check_text(template, f"{what}: id_template")
    rest = template.replace(PLACEHOLDER, "", 1)
    if template.count(PLACEHOLDER) != 1 or "{" in rest or "}" in rest:
        raise ValueError(
            f"{what}: id_template {template!r} must hold {PLACEHOLDER} once, the number that makes each id another one, "
            "and no other placeholder"
        )
    if not rest.isprintable() or len(rest) > _LONGEST_ID - _DIGITS:
        raise ValueError(
            f"{what}: id_template {template!r} makes no ids: they are at most {_LONGEST_ID} printable characters, "
            f"{_DIGITS} of them for the number"
        )
    return template


def encode(definition: Definition) -> str:
    """As it is stored."""
    return msgspec.json.encode(definition).decode()


_decode = msgspec.json.Decoder(Definition).decode


@lru_cache(maxsize=1_024)
def decode(stored: str) -> Definition:
    """What was stored. Raises ``ValueError`` for what this version does not know."""
    try:
        return _decode(stored)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its definition is not one of this version's: {error}") from error


# --- times --------------------------------------------------------------------------------------------------------------


class Passed(Struct, frozen=True):
    """The ticks that have come: how many, the latest of them, and the one after it."""

    count: int
    latest: int
    following: int | None


class Timing(Protocol):
    """When ticks come; all times are microseconds since the epoch. ``None``: never again."""

    def first(self, now: int) -> int | None:
        """The first tick of a schedule that begins now."""
        ...

    def following(self, tick: int) -> int | None:
        """The tick after ``tick``."""
        ...

    def upcoming(self, tick: int) -> Iterator[int]:
        """``tick`` and those after it."""
        ...

    def passed(self, tick: int, now: int) -> Passed:
        """Of ``tick``, which has come, and those after it: what has come by ``now``."""
        ...


class Every(Struct, frozen=True):
    """At equal distances, counted from when the schedule begins."""

    length: int

    def first(self, now: int) -> int | None:
        return self.following(now)

    def following(self, tick: int) -> int | None:
        return tick + self.length if tick + self.length <= FOREVER else None

    def upcoming(self, tick: int) -> Iterator[int]:
        return iter(range(tick, FOREVER + 1, self.length))

    def passed(self, tick: int, now: int) -> Passed:
        more = max(0, now - tick) // self.length
        latest = tick + more * self.length
        return Passed(more + 1, latest, self.following(latest))


class Cron(Struct, frozen=True):
    """At the times of a cron expression on the clocks of a zone. ``wall``: of one that fixes the minute and the hour."""

    expression: str
    zone: tzinfo
    wall: bool

    def first(self, now: int) -> int | None:
        return next(self._after(now), None)

    def following(self, tick: int) -> int | None:
        return next(self._after(tick), None)

    def upcoming(self, tick: int) -> Iterator[int]:
        yield tick
        yield from self._after(tick)

    def passed(self, tick: int, now: int) -> Passed:
        latest = tick
        count = 1
        for following in self._after(tick):
            if following > now:
                return Passed(count, latest, following)
            if count >= COUNTED:
                return self._far(count, following, now)
            count += 1
            latest = following
        return Passed(count, latest, None)

    def _far(self, count: int, tick: int, now: int) -> Passed:
        """The end of a long outage, without walking all of it: looked for in a time before ``now`` that doubles until it holds a tick."""
        length = 60 * SECOND
        while now - length > tick:
            first = self.following(now - length)
            if first is not None and first <= now:
                tick = first
                break
            length *= 2
        for following in self._after(tick):
            if following > now:
                return Passed(count, tick, following)
            tick = following
        return Passed(count, tick, None)

    def _after(self, at: int) -> Iterator[int]:
        """The ticks later than ``at``."""
        try:
            local = moment(at).astimezone(self.zone)
            # Without its zone the expression is walked along the wall's clock, with it along time itself.
            for found in CronSim(self.expression, local.replace(tzinfo=None, fold=0) if self.wall else local):
                tick = instant(_placed(found, self.zone) if self.wall else found)
                # Never backwards: of an hour that comes twice the wall shows the first when the second has begun, and what fell
                # into an hour that was left out meets at its end.
                if tick > at:
                    at = tick
                    yield tick
        except OverflowError:  # the end of the calendar
            return


def _placed(local: datetime, zone: tzinfo) -> datetime:
    """When the wall shows ``local``: the first time, if it does so twice; the first moment after it, if it never does."""
    placed = local.replace(tzinfo=zone, fold=0)
    if _is_shown(placed):
        return placed
    placed = placed.replace(second=0)
    while not _is_shown(placed):
        # Arithmetic on the wall's clock, as long as the zone stays the same object.
        placed += timedelta(minutes=1)
    return placed


def _is_shown(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) == local.replace(tzinfo=None)


@lru_cache(maxsize=1_024)
def _timing(cron: str | None, every: int | None, timezone: str) -> Timing:
    if every is not None:
        return Every(every)
    expression = cron or ""
    zone = zone_of(timezone)
    try:
        if len(expression) > _LONGEST_CRON:
            raise ValueError(f"more than {_LONGEST_CRON} characters")
        CronSim(expression, _EPOCH)
    except Exception as error:  # the parser has assertions of its own beside its error
        said = str(error) or "it does not parse"
        raise ValueError(f"cron {expression!r} is no cron expression of five or six fields: {said}") from None
    minute, hour = expression.split()[-5:-3]
    return Cron(expression, zone, not minute.startswith("*") and not hour.startswith("*"))


def zone_of(name: str) -> tzinfo:
    """The time zone. Raises ``ValueError`` for one that nobody here knows."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"timezone {name!r} is not known here: use a name like 'Europe/Berlin' (systems without the list of zones get it "
            "by: pip install tzdata)"
        ) from None


def next_times(definition: Definition, next_at: int | None, count: int) -> list[int]:
    """The next ``count`` ticks."""
    return [] if next_at is None else list(islice(definition.timing.upcoming(next_at), count))


# --- what to do ---------------------------------------------------------------------------------------------------------


def plan(due: DueRecurrence, now: int) -> Firing | None:
    """What is to be done about a schedule that is due; ``None``: wait until its last execution has ended.

    Raises ``ValueError`` for a definition, or a zone, that is not known here.
    """
    definition = decode(due.definition)
    passed = definition.timing.passed(due.next_at, now)
    before, after = definition.id_parts

    def firing(count: int, next_at: int | None, skipped: int, **options: Any) -> Firing:
        return Firing(
            name=due.name,
            revision=due.revision,
            prefix=before,
            suffix=after,
            timeout=definition.timeout,
            count=count,
            next_at=next_at,
            skipped=skipped,
            **options,
        )

    owed = due.owed_until is not None and due.next_at <= due.owed_until
    # One tick in its time is what a schedule does all day. More of them, or one that is late: nobody was there.
    missed = owed or passed.count > 1 or now - due.next_at > GRACE
    if missed and definition.catch_up == "skip":
        return firing(0, passed.following, passed.count)
    if missed and definition.catch_up == "all" and definition.overlap == "allow":
        return _backlog(definition, due, passed, firing)
    if missed and definition.catch_up == "all" and definition.overlap == "skip":
        return _queue(definition, due, passed, firing)
    if due.live and definition.overlap == "skip":
        return firing(0, passed.following, passed.count)
    return firing(
        1,
        passed.following,
        passed.count - 1,
        unless_live=definition.overlap == "skip",
        cancel_last=definition.overlap == "cancel",
    )


class _Fire(Protocol):
    def __call__(self, count: int, next_at: int | None, skipped: int, **options: Any) -> Firing: ...


def _backlog(definition: Definition, due: DueRecurrence, passed: Passed, firing: _Fire) -> Firing:
    """All that was missed, a batch at a time: what is left is due at once."""
    if passed.count <= BATCH:
        return firing(passed.count, passed.following, 0)
    return firing(BATCH, next(islice(definition.timing.upcoming(due.next_at), BATCH, None), None), 0)


def _queue(definition: Definition, due: DueRecurrence, passed: Passed, firing: _Fire) -> Firing | None:
    """All that was missed, one after another, since no two may run at once.

    What comes due meanwhile finds the schedule at work: it was not missed, and is skipped. Without that a schedule whose
    executions take longer than its interval would fall behind for ever.
    """
    known = due.owed_until is not None and due.next_at <= due.owed_until
    owed_until = due.owed_until if known and due.owed_until is not None else passed.latest
    if due.live:
        # What is owed is fixed now, not when the last one has ended.
        return None if known else firing(0, due.next_at, 0, owed_until=owed_until)
    following = definition.timing.following(due.next_at)
    if following is not None and following <= owed_until:
        return firing(1, following, 0, unless_live=True, owed_until=owed_until)
    return firing(1, passed.following, passed.count - 1, unless_live=True)
