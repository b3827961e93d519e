"""The events of one run: which are unread, and who waits for the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from zart_core.records import EventRow, StepRow


class Inbox:
    """Events by name in arrival order. An event is read by at most one wait: the row of that wait says which."""

    __slots__ = ("_by_seq", "_unread")

    def __init__(self, events: Iterable[EventRow], rows: Iterable[StepRow]) -> None:
        self._by_seq: dict[int, EventRow] = {}
        self._unread: dict[str, deque[EventRow]] = {}
        read = {row.event_seq for row in rows if row.event_seq is not None}
        for event in events:
            self._by_seq[event.seq] = event
            if event.seq not in read:
                self._unread.setdefault(event.name, deque()).append(event)

    def add(self, events: Iterable[EventRow]) -> None:
        """New arrivals. Those already known are skipped, so that a repeated notification is harmless."""
        for event in events:
            if event.seq not in self._by_seq:
                self._by_seq[event.seq] = event
                self._unread.setdefault(event.name, deque()).append(event)

    def take(self, name: str, until: int | None) -> EventRow | None:
        """The next unread event of this name; not one that came after ``until`` (it stays for the next wait)."""
        unread = self._unread.get(name)
        if not unread or (until is not None and unread[0].sent_at > until):
            return None
        return unread.popleft()

    def read(self, seq: int) -> EventRow | None:
        """The event that a recorded wait has read."""
        return self._by_seq.get(seq)
