"""Retry policies: what text means, when they stop, how long they wait. (Durability and the clock: tests/behaviour.)"""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from zart_core.duration import SECOND, Duration, spoken
from zart_core.errors import NonRetryable, RetryAfter
from zart_core.retry import NO_RETRY, RetryConfig, Verdict, judge

ERROR = OSError("down")
FOR_EVER = 100


def delays(config: RetryConfig, error: BaseException = ERROR) -> list[float]:
    """The seconds before each further attempt, until the policy stops."""
    found: list[float] = []
    for attempt in range(1, FOR_EVER):
        verdict = judge(config, error, attempt=attempt, elapsed=0)
        if verdict.delay is None:
            return found
        found.append(verdict.delay / SECOND)
    raise AssertionError("the policy does not stop")


# --- text -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", []),
        (" none ", []),
        ("none()", []),
        ("fixed(3, 1s)", [1, 1, 1]),
        ("fixed(0, 1s)", []),
        ("fixed(2,250ms)", [0.25, 0.25]),
        ("fixed( 2 , 1h30m )", [5_400, 5_400]),
        ("fixed(2, 0s)", [0, 0]),
        ("fixed(2, 1.5)", [1.5, 1.5]),
        ("fixed(retries=2, delay=3s)", [3, 3]),
        ("fixed(2, delay=3s)", [3, 3]),
        ("fixed(delay=3s, retries=1)", [3]),
        (" fixed (1, 1s) ", [1]),
        ("exponential(4, 2s, jitter=false)", [2, 4, 8, 16]),
        ("exponential(4, 2s, 5s, false)", [2, 4, 5, 5]),
        ("exponential(retries=4, initial=2s, max_delay=10s, jitter=False)", [2, 4, 8, 10]),
        ("exponential(2, 1, jitter=FALSE)", [1, 2]),
    ],
)  # fmt: skip
def test_text_means_what_it_says(text: str, expected: list[float]) -> None:
    assert delays(RetryConfig.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not understood"),
        ("often", "is not understood"),
        ("3", "is not understood"),
        ("fixed", "is not understood"),
        ("fixed(3, 1s", "is not understood"),
        ("fixed 3, 1s", "is not understood"),
        ("fixed((3), 1s)", "is not understood"),
        ("fixed(3, 1s) or so", "is not understood"),
        ("linear(3, 1s)", "is not understood"),
        ("Fixed(3, 1s)", "is not understood"),
        ("fixed()", "needs retries and delay"),
        ("fixed(3)", "needs delay"),
        ("exponential(3)", "needs initial"),
        ("exponential(initial=1s)", "needs retries"),
        ("none(3)", r"none\(\) takes at most 0 options"),
        ("fixed(3, 1s, 2s)", r"fixed\(\) takes at most 2 options"),
        ("exponential(3, 1s, 2s, true, 5)", r"exponential\(\) takes at most 4 options"),
        ("fixed(3, 1s, jitter=true)", "has no option 'jitter'"),
        ("fixed(3, 1s, retries=4)", "retries is given twice"),
        ("fixed(retries=3, 1s)", "comes after a named option"),
        ("fixed(-1, 1s)", "must be a whole number, not '-1'"),
        ("fixed(1.5, 1s)", "must be a whole number, not '1.5'"),
        ("fixed(three, 1s)", "must be a whole number, not 'three'"),
        ("fixed(٣, 1s)", "must be a whole number"),
        ("fixed(3, -1s)", "must not be negative"),
        ("fixed(3, soon)", "'soon' is not a duration"),
        ("fixed(3, )", "is not a duration"),
        ("fixed(3,, 1s)", "takes at most 2 options"),
        ("exponential(3, 1s, max_delay=soon)", "'soon' is not a duration"),
        ("exponential(3, 1s, jitter=maybe)", "must be true or false, not 'maybe'"),
    ],
)
def test_text_that_is_no_policy_is_refused_with_the_text(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        RetryConfig.parse(text)
    assert repr(text) in str(error.value)


@given(st.text() | st.from_regex(r"\A(fixed|exponential|none)\([a-z0-9=, .]*\)\Z"))
def test_any_text_is_understood_or_refused_with_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(RetryConfig.parse(text), RetryConfig)


@given(st.integers(0, 50), st.integers(0, 10**12))
def test_a_fixed_policy_written_down_reads_back_the_same(retries: int, delay: int) -> None:
    text = f"fixed({retries}, {spoken(delay)})"
    config = RetryConfig.parse(text)
    assert config.max_retries == retries
    assert delays(config) == [pytest.approx(delay / SECOND)] * retries


@given(st.integers(0, 12), st.integers(1, 10**9), st.one_of(st.none(), st.integers(1, 10**12)))
def test_an_exponential_policy_written_down_doubles_up_to_its_limit(
    retries: int, initial: int, limit: int | None
) -> None:
    bound = "" if limit is None else f", max_delay={spoken(limit)}"
    found = delays(RetryConfig.parse(f"exponential({retries}, {spoken(initial)}{bound}, jitter=false)"))
    expected = [min(initial * 2**n, limit or initial * 2**n) for n in range(retries)]
    assert found == [pytest.approx(delay / SECOND, abs=2e-6) for delay in expected]


# --- what an option may be ----------------------------------------------------------------------------------------------------------------


def test_a_retry_option_is_a_policy_or_text_or_nothing() -> None:
    config = RetryConfig.fixed(1, "1s")
    assert RetryConfig.of(config) is config
    assert RetryConfig.of(None) is NO_RETRY
    assert RetryConfig.of("fixed(2, 1s)") is RetryConfig.of("fixed(2, 1s)"), "text is read once"


@pytest.mark.parametrize("given_", [3, True, [], {"retries": 3}, RetryConfig])
def test_a_retry_option_of_another_type_is_refused(given_: Any) -> None:
    with pytest.raises(TypeError, match="retry must be a RetryConfig or text"):
        RetryConfig.of(given_)


@pytest.mark.parametrize("retries", [1.0, "3", None, True])
def test_a_number_of_retries_is_a_whole_number(retries: Any) -> None:
    for build in (RetryConfig.fixed, RetryConfig.exponential):
        with pytest.raises(TypeError, match="the number of retries must be a whole number"):
            build(retries, "1s")


@pytest.mark.parametrize("build", [RetryConfig.fixed, RetryConfig.exponential])
def test_less_than_no_retries_are_refused(build: Any) -> None:
    with pytest.raises(ValueError, match="the number of retries must not be negative, not -1"):
        build(-1, "1s")


@pytest.mark.parametrize("delay", ["-1s", -0.5, timedelta(seconds=-1)])
def test_a_delay_into_the_past_is_refused(delay: Duration) -> None:
    with pytest.raises(ValueError, match="delay must not be negative"):
        RetryConfig.fixed(1, delay)
    with pytest.raises(ValueError, match="initial delay must not be negative"):
        RetryConfig.exponential(1, delay)
    with pytest.raises(ValueError, match="max_delay must not be negative"):
        RetryConfig.exponential(1, "1s", delay)


# --- when it stops, how long it waits -------------------------------------------------------------------------------------------------------


def test_without_a_policy_the_first_failure_is_final_and_nothing_was_exhausted() -> None:
    for config in (NO_RETRY, RetryConfig.none(), RetryConfig.parse("none"), RetryConfig.fixed(0, "1s")):
        assert judge(config, ERROR, attempt=1, elapsed=0) == Verdict(None, exhausted=False)
        assert config.max_retries == 0


def test_the_last_failure_of_a_policy_is_an_exhaustion() -> None:
    config = RetryConfig.fixed(2, "1s")
    verdicts = [judge(config, ERROR, attempt=attempt, elapsed=0) for attempt in (1, 2, 3)]
    assert verdicts == [Verdict(SECOND), Verdict(SECOND), Verdict(None, exhausted=True)]


@given(st.integers(1, 20), st.integers(1, 10**9))
def test_jitter_adds_at_most_a_quarter_and_takes_nothing_away(attempt: int, initial: int) -> None:
    config = RetryConfig.exponential(20, timedelta(microseconds=initial))
    delay = judge(config, ERROR, attempt=attempt, elapsed=0).delay
    plain = initial * 2 ** (attempt - 1)
    assert delay is not None
    assert plain - 1 <= delay <= plain * 1.25 + 1


@given(st.integers(1, 20))
def test_jitter_does_not_go_beyond_the_limit(attempt: int) -> None:
    delay = judge(RetryConfig.exponential(20, "2s", "5s"), ERROR, attempt=attempt, elapsed=0).delay
    assert delay is not None
    assert delay <= 5 * SECOND


def test_jitter_differs_from_one_failure_to_the_next() -> None:
    config = RetryConfig.exponential(1, "1h")
    assert len({judge(config, ERROR, attempt=1, elapsed=0).delay for _ in range(20)}) > 1


def test_many_retries_do_not_overflow() -> None:
    config = RetryConfig.exponential(10**6, "1s", jitter=False)
    delay = judge(config, ERROR, attempt=10**5, elapsed=0).delay
    assert delay is not None
    assert delay > 0


# --- what the error says ----------------------------------------------------------------------------------------------------------------------


def test_non_retryable_ends_any_policy_without_an_exhaustion() -> None:
    class Hopeless(NonRetryable):
        pass

    for error in (NonRetryable("no"), Hopeless("no")):
        assert judge(RetryConfig.fixed(3, "1s"), error, attempt=1, elapsed=0) == Verdict(None)


@pytest.mark.parametrize(
    ("delay", "micros"), [("90s", 90 * SECOND), (1.5, 1_500_000), (timedelta(minutes=1), 60 * SECOND), (-5, 0), (0, 0)]
)
def test_retry_after_sets_the_delay_and_not_the_number(delay: Duration, micros: int) -> None:
    config = RetryConfig.fixed(2, "7s")
    assert judge(config, RetryAfter(delay), attempt=1, elapsed=0) == Verdict(micros)
    assert judge(config, RetryAfter(delay), attempt=3, elapsed=0) == Verdict(None, exhausted=True)


def test_retry_after_is_retried_whatever_the_policy_retries() -> None:
    config = RetryConfig(
        stop=tenacity.stop_after_attempt(3),
        retry=tenacity.retry_if_exception_type(ConnectionError),
        wait=lambda state: 1,
    )
    assert judge(config, RetryAfter("2s"), attempt=1, elapsed=0) == Verdict(2 * SECOND)
    assert judge(config, ERROR, attempt=1, elapsed=0) == Verdict(None)


def test_retry_after_without_a_policy_is_final() -> None:
    assert judge(NO_RETRY, RetryAfter("2s"), attempt=1, elapsed=0).delay is None


# --- tenacity's strategies ------------------------------------------------------------------------------------------------------------------


def test_a_strategy_sees_the_attempt_the_error_and_the_time_since_the_first() -> None:
    seen: list[tuple[Any, ...]] = []

    def stop(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        seen.append((state.attempt_number, state.outcome.exception(), state.seconds_since_start, state.upcoming_sleep))
        return False

    judge(RetryConfig(stop=stop, wait=tenacity.wait_fixed(4)), ERROR, attempt=3, elapsed=5_500_000)
    [(attempt, error, seconds, sleep)] = seen
    assert (attempt, error, sleep) == (3, ERROR, 4.0)
    assert seconds == pytest.approx(5.5, abs=1e-3)


@pytest.mark.parametrize(
    ("stop", "waits"),
    [
        (tenacity.stop_after_attempt(1), 0),
        (tenacity.stop_after_attempt(5), 4),
        (tenacity.stop_any(tenacity.stop_after_attempt(9), tenacity.stop_after_attempt(2)), 1),
        (tenacity.stop_after_attempt(3) | tenacity.stop_after_delay(100), 2),
    ],
)
def test_tenacitys_stops_count_attempts(stop: Any, waits: int) -> None:
    assert len(delays(RetryConfig(stop=stop))) == waits


def test_tenacitys_stop_before_delay_looks_at_the_coming_wait() -> None:
    config = RetryConfig(stop=tenacity.stop_before_delay(10), wait=tenacity.wait_fixed(6))
    assert judge(config, ERROR, attempt=1, elapsed=3 * SECOND) == Verdict(6 * SECOND)
    assert judge(config, ERROR, attempt=2, elapsed=5 * SECOND) == Verdict(None, exhausted=True)


def test_tenacitys_waits_add_up() -> None:
    wait = tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2)) + tenacity.wait_fixed(0.5)
    assert delays(RetryConfig(stop=tenacity.stop_after_attempt(4), wait=wait)) == [1.5, 2.5, 2.5]


def test_a_negative_wait_is_none() -> None:
    config = RetryConfig(stop=tenacity.stop_after_attempt(2), wait=lambda state: -5)
    assert delays(config) == [0]


def test_a_condition_decides_by_the_error() -> None:
    config = RetryConfig(stop=tenacity.stop_after_attempt(3), retry=tenacity.retry_if_exception_type(OSError))
    assert delays(config, ConnectionError()) == [0, 0]
    assert delays(config, ValueError()) == []
    assert judge(config, ValueError(), attempt=2, elapsed=0) == Verdict(None, exhausted=False)


@pytest.mark.parametrize(
    "config",
    [
        RetryConfig.none(),
        RetryConfig.fixed(3, "250ms"),
        RetryConfig.exponential(5, "2s"),
        RetryConfig.exponential(5, 0.5, max_delay="1m", jitter=False),
    ],
)
def test_a_policy_means_the_same_after_it_was_written_down(config: RetryConfig) -> None:  # B37
    assert config.text is not None
    again = RetryConfig.parse(config.text)
    assert again.text == config.text
    for attempt in range(1, 8):
        random.seed(attempt)
        first = judge(config, OSError(), attempt=attempt, elapsed=0)
        random.seed(attempt)
        assert judge(again, OSError(), attempt=attempt, elapsed=0) == first


def test_a_policy_of_tenacitys_strategies_cannot_be_written_down() -> None:
    assert RetryConfig(stop=tenacity.stop_after_attempt(3)).text is None
