"""From a URL to a scheduler."""

from __future__ import annotations

import pytest

from zart_postgres import PostgresScheduler, from_url
from zart_postgres.database import Database

SECRET = "s3cret"  # noqa: S105 - nobody's


def database_of(scheduler: PostgresScheduler) -> Database:
    return scheduler._database


def test_ours_are_taken_out_and_the_rest_is_left_to_libpq() -> None:
    scheduler = from_url("postgresql://me@db:5433/app?schema=mine&sslmode=require&pooler=true&connect_timeout=3s")
    database = database_of(scheduler)
    assert database.url == "postgresql://me@db:5433/app?sslmode=require"
    assert (database.schema, database.pooler, database.connect_timeout) == ("mine", True, 3.0)


def test_options_win_over_the_url() -> None:
    assert database_of(from_url("postgres://db/app?schema=mine", schema="other")).schema == "other"


@pytest.mark.parametrize(("given", "seconds"), [("10", 10.0), ("2.5", 2.5), ("10s", 10.0), ("1m", 60.0)])
def test_a_timeout_without_a_unit_is_in_seconds_as_libpq_has_it(given: str, seconds: float) -> None:
    database = database_of(from_url(f"postgresql://db/app?connect_timeout={given}&command_timeout={given}"))
    assert (database.connect_timeout, database.command_timeout) == (seconds, seconds)


@pytest.mark.parametrize("name", ["", "Zart", "1zart", "pg_zart", "a-b", 'a"b', "a b", "a;b", "x" * 49, "zärt", "a\n"])
def test_a_name_that_no_schema_can_have_is_refused(name: str) -> None:  # B75
    with pytest.raises(ValueError, match="schema name"):
        PostgresScheduler("postgresql://db/app", schema=name)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{SECRET}@db/app",
        f"postgresql://me:{SECRET}@db/app?pool_size=many",
        f"postgresql://me:{SECRET}@db/app?pool_size=0",
        f"postgresql://me:{SECRET}@db/app?pooler=maybe",
        f"postgresql://me:{SECRET}@db/app?schema=a&schema=b",
        f"postgresql://me:{SECRET}@db/app?command_timeout=-1s",
    ],
)
def test_what_makes_no_sense_is_refused_without_a_word_of_the_password(url: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - each has a text of its own
        from_url(url)
    assert SECRET not in str(refusal.value)


def test_neither_name_nor_remedy_shows_the_password() -> None:
    scheduler = from_url(f"postgresql://me:{SECRET}@db:1/app")
    assert SECRET not in repr(scheduler) + database_of(scheduler).name + database_of(scheduler).remedy
    assert "postgresql://me@db:1/app" in database_of(scheduler).remedy
