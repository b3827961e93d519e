"""When ticks come, and what is done about those that are due: B71 to B73."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zart_core.duration import FOREVER, SECOND, instant, moment
from zart_core.records import DueRecurrence, Firing
from zart_core.recurrence import BATCH, COUNTED, GRACE, Definition, decode, define, encode, next_times, plan

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


def defined(**options: Any) -> Definition:
    fields: dict[str, Any] = {
        "cron": None, "every": None, "timezone": "UTC", "overlap": "skip", "id_template": None, "catch_up": "one", "timeout": None,
    }  # fmt: skip
    return define("nightly", **{**fields, **options})


def ticks(cron: str, zone: str, after: datetime, count: int) -> list[datetime]:
    """The next ``count`` ticks, on the clocks of ``zone``."""
    timing = defined(cron=cron, timezone=zone).timing
    first = timing.first(instant(after))
    assert first is not None
    return [moment(tick).astimezone(ZoneInfo(zone)) for tick in islice(timing.upcoming(first), count)]


def walls(found: list[datetime]) -> list[str]:
    return [f"{tick:%d %H:%M:%S} {tick.tzname()}" for tick in found]


# --- cron ---------------------------------------------------------------------------------------------------------------


def test_five_fields_are_minutes_hours_days_months_and_weekdays() -> None:  # B73
    found = ticks("30 2 * * MON", "UTC", datetime(2026, 1, 1, tzinfo=UTC), 2)
    assert found == [datetime(2026, 1, 5, 2, 30, tzinfo=UTC), datetime(2026, 1, 12, 2, 30, tzinfo=UTC)]


def test_of_six_fields_the_first_are_seconds() -> None:  # B73
    found = ticks("*/20 5 * * * *", "UTC", datetime(2026, 1, 1, tzinfo=UTC), 4)
    assert [f"{tick:%H:%M:%S}" for tick in found] == ["00:05:00", "00:05:20", "00:05:40", "01:05:00"]


def test_an_expression_means_the_clocks_of_its_zone() -> None:  # B73
    winter, summer = (
        ticks("0 2 * * *", "Europe/Berlin", datetime(2026, month, 1, 12, tzinfo=UTC), 1) for month in (1, 7)
    )
    assert [tick.astimezone(UTC).hour for tick in (*winter, *summer)] == [1, 0]


@pytest.mark.parametrize(
    ("zone", "day", "gap_end"),
    [("Europe/Berlin", 29, "29 03:00:00 CEST"), ("America/New_York", 8, "08 03:00:00 EDT")],
)
@pytest.mark.parametrize("cron", ["30 2 * * *", "15,30,45 2 * * *", "0 2,3 * * *", "0 30 2 * * *", "*/10 30 2 * * *"])
def test_what_falls_into_an_hour_that_is_left_out_comes_once_at_its_end(
    zone: str, day: int, gap_end: str, cron: str
) -> None:  # B73
    found = ticks(cron, zone, datetime(2026, 3, day, 0, 0, tzinfo=ZoneInfo(zone)), 1)
    assert walls(found) == [gap_end]
    # Once: the next one is on the next day.
    again = ticks(cron, zone, found[0], 1)
    assert again[0].day == day + 1
    assert again[0].hour == 2


@pytest.mark.parametrize(("zone", "day", "month"), [("Europe/Berlin", 25, 10), ("America/New_York", 1, 11)])
@pytest.mark.parametrize("cron", ["30 {hour} * * *", "0 30 {hour} * * *"])
def test_in_an_hour_that_comes_twice_it_comes_once(zone: str, day: int, month: int, cron: str) -> None:  # B73
    twice = 2 if zone == "Europe/Berlin" else 1
    expression = cron.format(hour=twice)
    found = ticks(expression, zone, datetime(2026, month, day, 0, 0, tzinfo=ZoneInfo(zone)), 2)
    assert [(tick.day, tick.hour, tick.fold) for tick in found] == [(day, twice, 0), (day + 1, twice, 0)]
    # Whoever begins to look in the second of the two hours does not find the first one's tick again.
    second = datetime(2026, month, day, twice, 10, tzinfo=ZoneInfo(zone), fold=1)
    assert [tick.day for tick in ticks(expression, zone, second, 1)] == [day + 1]


def test_an_expression_of_lengths_of_time_follows_the_clock_as_it_is() -> None:  # B73
    forward = ticks("30 * * * *", "Europe/Berlin", datetime(2026, 3, 29, 0, 45, tzinfo=BERLIN), 3)
    assert walls(forward) == ["29 01:30:00 CET", "29 03:30:00 CEST", "29 04:30:00 CEST"]
    back = ticks("*/30 * * * *", "Europe/Berlin", datetime(2026, 10, 25, 1, 45, tzinfo=BERLIN), 5)
    assert walls(back) == [
        "25 02:00:00 CEST", "25 02:30:00 CEST", "25 02:00:00 CET", "25 02:30:00 CET", "25 03:00:00 CET",
    ]  # fmt: skip


_EXPRESSIONS = st.sampled_from(
    [
        "* * * * *",
        "*/7 * * * *",
        "0 * * * *",
        "30 2 * * *",
        "0 2,3 * * *",
        "15 1-3 * * *",
        "0 0 * * SUN",
        "5 0 1 * *",
        "*/15 2 * * *",
    ]
)
_ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca"]
)
_TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda when: when.replace(tzinfo=UTC))
# Around the days on which clocks are changed, where it matters.
_SWITCHES = st.sampled_from([(2026, 3, 29), (2026, 10, 25), (2026, 3, 8), (2026, 11, 1), (2026, 4, 4)])
_NEAR = st.builds(
    lambda day, offset: datetime(*day, tzinfo=UTC) + timedelta(minutes=offset), _SWITCHES, st.integers(-1_500, 1_500)
)


@settings(max_examples=300, deadline=None)
@given(_EXPRESSIONS, _ZONES, st.one_of(_TIMES, _NEAR))
def test_ticks_are_those_of_cronsim_and_never_go_back(expression: str, zone: str, after: datetime) -> None:  # B73
    found = ticks(expression, zone, after, 6)
    assert found[0].astimezone(UTC) > after
    assert all(earlier.astimezone(UTC) < later.astimezone(UTC) for earlier, later in pairwise(found))
    local = after.astimezone(ZoneInfo(zone))
    assume(not local.fold)  # there cronsim's first tick may be over already
    theirs = list(islice(CronSim(expression, local), 12))
    unique = sorted({tick.astimezone(UTC) for tick in theirs})
    assert [tick.astimezone(UTC) for tick in found] == unique[:6]


@settings(max_examples=200, deadline=None)
@given(_EXPRESSIONS, _ZONES, st.one_of(_TIMES, _NEAR), st.integers(0, 3_000))
def test_going_on_from_any_tick_gives_the_same_ones(
    expression: str, zone: str, after: datetime, minutes: int
) -> None:  # B71
    timing = defined(cron=expression, timezone=zone).timing
    first = timing.first(instant(after))
    assert first is not None
    walked = list(islice(timing.upcoming(first), 8))
    stepped = [first]
    while len(stepped) < 8:
        following = timing.following(stepped[-1])
        assert following is not None
        stepped.append(following)
    assert walked == stepped


@settings(max_examples=200, deadline=None)
@given(_EXPRESSIONS, _ZONES, st.one_of(_TIMES, _NEAR), st.integers(0, 10_000 * 60))
def test_what_has_passed_is_what_walking_finds(
    expression: str, zone: str, after: datetime, seconds: int
) -> None:  # B73
    timing = defined(cron=expression, timezone=zone).timing
    first = timing.first(instant(after))
    assert first is not None
    now = first + seconds * SECOND
    walked = []
    for tick in timing.upcoming(first):
        if tick > now:
            following = tick
            break
        walked.append(tick)
    passed = timing.passed(first, now)
    assert (passed.latest, passed.following) == (walked[-1], following)
    assert passed.count == (len(walked) if len(walked) <= COUNTED else COUNTED)


@pytest.mark.parametrize("cron", ["* * * * * *", "* * 0-22 * * *", "* * 1 1 *", "0 0 29 2 *"])
def test_a_long_outage_is_not_walked_through(cron: str) -> None:  # B73
    timing = defined(cron=cron).timing
    first = timing.first(instant(datetime(2000, 1, 1, tzinfo=UTC)))
    assert first is not None
    now = instant(datetime(2026, 6, 1, 23, 59, 59, tzinfo=UTC))
    passed = timing.passed(first, now)
    assert passed.latest <= now
    assert passed.following is not None
    assert passed.following > now
    assert timing.following(passed.latest) == passed.following
    assert passed.count <= COUNTED


# --- every --------------------------------------------------------------------------------------------------------------


@given(st.integers(10_000, 10 * HOUR), st.integers(0, 10**15), st.integers(0, 10**12))
def test_intervals_keep_their_distance_whatever_was_missed(length: int, start: int, late: int) -> None:  # B71
    timing = defined(every=timedelta(microseconds=length)).timing
    assert timing.first(start) == start + length
    passed = timing.passed(start, start + late)
    assert passed.latest <= start + late < passed.latest + length
    assert (passed.latest - start) % length == 0
    assert passed.count == (passed.latest - start) // length + 1
    assert passed.following == passed.latest + length


def test_an_interval_ends_with_the_calendar() -> None:  # B73
    timing = defined(every="1h").timing
    assert timing.following(FOREVER) is None
    assert timing.following(FOREVER - HOUR) == FOREVER


def test_a_cron_expression_ends_with_the_calendar() -> None:  # B73
    assert defined(cron="0 0 1 1 *").timing.following(FOREVER - HOUR) is None


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give cron or every, one of the two"),
        ({"cron": "* * * * *", "every": "1m"}, "give cron or every, one of the two"),
        ({"cron": ""}, "cron '' is no cron expression"),
        ({"cron": "   "}, "cron '' is no cron expression"),
        ({"cron": "* * * *"}, "Wrong number of fields"),
        ({"cron": "* * * * * * *"}, "Wrong number of fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "* 24 * * *"}, "Bad hour"),
        ({"cron": "61 * * * * *"}, "Bad second"),
        ({"cron": "@daily"}, "cron '@daily'"),
        ({"cron": "0 0 31 2 *"}, "Bad day-of-month"),
        ({"cron": "* * */20 * 1L"}, "never comes"),
        ({"cron": "* * * * 1L/2"}, "cron"),
        ({"cron": "* * * * " + "1," * 200 + "1"}, "more than 200 characters"),
        ({"cron": "0 0 * * *", "timezone": "Mars/Olympus"}, "timezone 'Mars/Olympus' is not known"),
        ({"cron": "0 0 * * *", "timezone": ""}, "timezone ''"),
        ({"cron": "0 0 * * *", "timezone": "../etc/passwd"}, "timezone"),
        ({"cron": "0 0 * * *", "timezone": "Europe"}, "timezone 'Europe'"),
        ({"every": "1m", "timezone": "Mars/Olympus"}, "timezone"),
        ({"every": 0}, "every must be at least 10ms"),
        ({"every": -5}, "every must be at least 10ms"),
        ({"every": "9ms"}, "every must be at least 10ms"),
        ({"every": "soon"}, "every 'soon' is not a duration"),
        ({"every": float("inf")}, "every must be a finite number"),
        ({"every": "9999999d"}, "never comes"),
        ({"every": "1m", "overlap": "queue"}, "overlap must be"),
        ({"every": "1m", "catch_up": "none"}, "catch_up must be"),
        ({"every": "1m", "id_template": "report"}, "id_template 'report' must hold {occurrence} once"),
        ({"every": "1m", "id_template": "{occurrence}-{date}"}, "id_template"),
        ({"every": "1m", "id_template": "{occurrence}{occurrence}"}, "id_template"),
        ({"every": "1m", "id_template": "a-{occurrence:04}"}, "id_template"),
        ({"every": "1m", "id_template": "{}-{occurrence}"}, "id_template"),
        ({"every": "1m", "id_template": "a\n{occurrence}"}, "id_template"),
        ({"every": "1m", "id_template": "a" * 189 + "{occurrence}"}, "id_template"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(options: dict[str, Any], said: str) -> None:  # B73
    with pytest.raises(ValueError, match="recurring 'nightly'") as refused:
        defined(**options)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"cron": 5}, {"cron": "* * * * *", "timezone": None}, {"every": "1m", "id_template": 5}, {"every": [1]}]
)
def test_what_is_of_the_wrong_type_is_refused(options: dict[str, Any]) -> None:  # B73
    with pytest.raises(TypeError, match="recurring 'nightly'"):
        defined(**options)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "n" * 201, "\ud800"])
def test_a_name_that_is_none_is_refused(name: str) -> None:  # B73
    with pytest.raises(ValueError, match="cannot name a schedule"):
        define(
            name,
            cron=None,
            every="1m",
            timezone="UTC",
            overlap="skip",
            id_template="{occurrence}",
            catch_up="one",
            timeout=None,
        )


def test_a_definition_is_stored_whole() -> None:  # B71
    given_ = defined(
        cron=" 0  2 * * * ",
        timezone="Europe/Berlin",
        overlap="allow",
        catch_up="all",
        id_template="r{occurrence}!",
        timeout=5,
    )
    assert decode(encode(given_)) == given_
    assert given_.cron == "0 2 * * *"
    assert given_.id_parts == ("r", "!")
    assert defined(every="1m").id_template == "nightly-{occurrence}"


def test_a_definition_of_another_version_is_a_value_error() -> None:  # B71
    with pytest.raises(ValueError, match="definition"):
        decode('{"id_template": "a", "overlap": "queue"}')


def test_next_times_are_the_tick_and_those_after_it() -> None:
    assert next_times(defined(every="1m"), 5, 3) == [5, 5 + MINUTE, 5 + 2 * MINUTE]
    assert next_times(defined(every="1m"), None, 3) == []


# --- what is done -------------------------------------------------------------------------------------------------------

NOW = instant(datetime(2026, 1, 1, tzinfo=UTC))


def due(ago: int = 0, *, live: bool = False, owed_until: int | None = None, **options: Any) -> DueRecurrence:
    """A schedule of every hour (unless ``options`` say otherwise) whose next tick came ``ago`` microseconds ago."""
    fields = {"every": "1h", **options}
    return DueRecurrence(
        name="nightly",
        revision=7,
        definition=encode(defined(**fields)),
        next_at=NOW - ago,
        owed_until=owed_until,
        last_execution_id="nightly-0" if live else None,
        live=live,
    )


def planned(given_: DueRecurrence) -> tuple[int, int, int] | None:
    """How many are started, how many ticks start nothing, and when the next tick is, from now in microseconds."""
    firing = plan(given_, NOW)
    if firing is None:
        return None
    assert firing.next_at is not None
    return firing.count, firing.skipped, firing.next_at - NOW


def test_a_firing_names_what_was_seen() -> None:  # B71
    given_ = due(id_template="a-{occurrence}-b", timeout=9, overlap="allow")
    assert plan(given_, NOW) == Firing(
        name="nightly", revision=7, prefix="a-", suffix="-b", timeout=9, count=1, next_at=NOW + HOUR
    )


@pytest.mark.parametrize("catch_up", ["one", "all", "skip"])
@pytest.mark.parametrize("late", [0, 1, GRACE])
def test_a_tick_in_its_time_starts_one_whatever_becomes_of_missed_ones(catch_up: str, late: int) -> None:  # B73
    assert planned(due(late, catch_up=catch_up)) == (1, 0, HOUR - late)


def test_of_missed_ticks_one_starts_one_for_all() -> None:  # B73
    assert planned(due(5 * HOUR + 1)) == (1, 5, HOUR - 1)


def test_of_missed_ticks_skip_starts_none() -> None:  # B73
    assert planned(due(5 * HOUR + 1, catch_up="skip")) == (0, 6, HOUR - 1)
    assert planned(due(GRACE + 1, catch_up="skip")) == (0, 1, HOUR - GRACE - 1)


def test_of_missed_ticks_all_starts_one_for_each() -> None:  # B73
    assert planned(due(5 * HOUR + 1, catch_up="all", overlap="allow")) == (6, 0, HOUR - 1)


def test_of_very_many_missed_ticks_all_starts_a_batch_and_the_rest_is_due() -> None:  # B73
    year = 525_600 * MINUTE
    given_ = due(year, catch_up="all", overlap="allow", every="1m")
    assert planned(given_) == (BATCH, 0, BATCH * MINUTE - year)
    cron = due(year, catch_up="all", overlap="allow", every=None, cron="* * * * *")
    assert planned(cron) == (BATCH, 0, BATCH * MINUTE - year)


def test_all_with_skip_starts_what_was_missed_one_after_another() -> None:  # B72, B73
    options = {"catch_up": "all", "overlap": "skip"}
    firing = plan(due(3 * HOUR, **options), NOW)
    assert firing is not None
    assert (firing.count, firing.skipped, firing.next_at) == (1, 0, NOW - 2 * HOUR)
    assert (firing.unless_live, firing.owed_until) == (True, NOW)
    # The next one waits for it, however long that takes.
    assert plan(due(2 * HOUR, live=True, owed_until=NOW, **options), NOW) is None
    assert plan(due(0, live=True, owed_until=NOW, **options), NOW) is None
    # What came due meanwhile found the schedule at work.
    last = plan(due(2 * HOUR, owed_until=NOW - 2 * HOUR, **options), NOW)
    assert last is not None
    assert (last.count, last.skipped, last.next_at, last.owed_until) == (1, 2, NOW + HOUR, None)


def test_what_is_owed_is_fixed_though_the_last_one_still_lives() -> None:  # B72, B73
    firing = plan(due(3 * HOUR, live=True, catch_up="all", overlap="skip"), NOW)
    assert firing is not None
    assert (firing.count, firing.skipped, firing.next_at, firing.owed_until) == (0, 0, NOW - 3 * HOUR, NOW)


@pytest.mark.parametrize("catch_up", ["one", "all"])
def test_with_cancel_the_latest_of_missed_ticks_is_started_alone(catch_up: str) -> None:  # B72, B73
    given_ = due(5 * HOUR, live=True, catch_up=catch_up, overlap="cancel")
    assert planned(given_) == (1, 5, HOUR)
    firing = plan(given_, NOW)
    assert firing is not None
    assert (firing.cancel_last, firing.unless_live) == (True, False)


@pytest.mark.parametrize("catch_up", ["one", "all", "skip"])
def test_with_skip_a_tick_passes_while_the_last_one_lives(catch_up: str) -> None:  # B72
    assert planned(due(0, live=True, catch_up=catch_up)) == (0, 1, HOUR)


def test_with_allow_a_tick_starts_the_next_beside_the_last() -> None:  # B72
    firing = plan(due(0, live=True, overlap="allow"), NOW)
    assert firing is not None
    assert (firing.count, firing.cancel_last, firing.unless_live) == (1, False, False)


def test_a_zone_that_is_not_known_here_is_a_value_error() -> None:  # B73
    definition = encode(Definition(cron="0 2 * * *", timezone="Mars/Olympus", id_template="a{occurrence}"))
    given_ = DueRecurrence(
        name="a", revision=1, definition=definition, next_at=1, owed_until=None, last_execution_id=None, live=False
    )
    with pytest.raises(ValueError, match="Mars/Olympus"):
        plan(given_, NOW)
