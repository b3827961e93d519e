"""The events of one run: in order by name, each read once, however often they are told of."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from zart_core.engine.inbox import Inbox
from zart_core.records import EventRow, StepRow


def event(seq: int, name: str = "news", sent_at: int = 0) -> EventRow:
    return EventRow(seq, name, b"%d" % seq, sent_at)


def wait(ordinal: int, seq: int | None, name: str = "news") -> StepRow:
    """The row of a wait that has read the event ``seq``."""
    return StepRow(name, ordinal, "event", "pending" if seq is None else "completed", 0, 0, event_seq=seq)


def taken(inbox: Inbox, name: str = "news", until: int | None = None) -> list[int]:
    """All that can be taken now."""
    found: list[int] = []
    while (row := inbox.take(name, until)) is not None:
        found.append(row.seq)
    return found


def test_events_are_taken_in_the_order_of_their_arrival_and_once() -> None:
    inbox = Inbox([event(3), event(5), event(8)], [])
    assert taken(inbox) == [3, 5, 8]
    assert taken(inbox) == []


def test_each_name_has_a_queue_of_its_own() -> None:
    inbox = Inbox([event(1, "a"), event(2, "b"), event(3, "a")], [])
    assert taken(inbox, "c") == []
    assert taken(inbox, "b") == [2]
    assert taken(inbox, "a") == [1, 3]


def test_what_an_earlier_life_has_read_is_not_taken_again_but_can_be_read() -> None:
    inbox = Inbox([event(1), event(2), event(3)], [wait(0, 2), wait(1, None)])
    assert taken(inbox) == [1, 3]
    read = inbox.read(2)
    assert read is not None
    assert read.payload == b"2"
    assert inbox.read(9) is None


def test_an_event_can_be_read_after_it_was_taken() -> None:
    inbox = Inbox([event(1)], [])
    inbox.take("news", None)
    assert inbox.read(1) is not None


def test_news_go_behind_what_is_there_and_are_taken_once_though_told_twice() -> None:
    inbox = Inbox([event(1)], [])
    inbox.add([event(1), event(2)])
    inbox.add([event(2), event(3)])
    assert taken(inbox) == [1, 2, 3]
    inbox.add([event(1), event(2), event(3)])
    assert taken(inbox) == []


def test_what_came_after_a_timeout_stays_for_the_next_wait() -> None:
    inbox = Inbox([event(1, sent_at=10), event(2, sent_at=21)], [])
    assert taken(inbox, until=20) == [1]
    assert taken(inbox, until=20) == []
    assert taken(inbox, until=21) == [2], "at the very moment is in time"


def test_without_a_timeout_any_event_will_do() -> None:
    assert taken(Inbox([event(1, sent_at=10**18)], [])) == [1]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30),
    st.integers(0, 30),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_of_any_history_exactly_the_unread_come_in_order(
    arrivals: list[tuple[str, bool]], known: int, repeats: list[int]
) -> None:
    events = [event(seq, name) for seq, (name, _) in enumerate(arrivals)]
    waits = [wait(seq, seq, name) for seq, (name, read) in enumerate(arrivals) if read and seq < known]
    inbox = Inbox(events[:known], waits)
    for begin in repeats:
        inbox.add(events[min(begin, known) :])
    inbox.add(events[known:])
    expected: defaultdict[str, list[int]] = defaultdict(list)
    for seq, (name, read) in enumerate(arrivals):
        if not (read and seq < known):
            expected[name].append(seq)
    assert {name: taken(inbox, name) for name in "abc"} == {name: expected[name] for name in "abc"}
