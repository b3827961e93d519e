"""The proof of a queue's limits, from a ledger that all processes write: which bodies were under way at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from tests.verification.finding import Finding

if TYPE_CHECKING:
    from tests.verification.ledger import Account
    from tests.verification.prediction import Prediction

QUEUE: Final = "narrow"
AT_ONCE: Final = 3
PER_KEY: Final = 1


def crowded(account: Account, told: Mapping[str, Prediction]) -> Iterator[Finding]:
    """More executions at work than the queue allows, of all keys or of one.

    A body lasts until its end, or until its process is killed. One whose lease was lost later counts for nothing: others may have its place.
    """
    changes: list[tuple[int, int, str, str]] = []
    for (name, step), begins in account.begins.items():
        known = told.get(name)
        if known is None or known.key is None:
            continue
        for begin in begins:
            if not account.doubtful(begin):
                over = min(account.end((name, step), begin), account.gone(begin))
                changes += [(begin.position, 1, name, known.key), (over, -1, name, known.key)]
    at_work = Counter[tuple[str, str]]()
    for position, change, name, key in sorted(changes):
        at_work[name, key] += change
        if change < 0:
            continue
        busy = [key for (_, key), count in at_work.items() if count > 0]
        if len(busy) > AT_ONCE:
            yield Finding("wrong", f"{len(busy)} executions of queue {QUEUE} were at work at once (line {position})")
        elif busy.count(key) > PER_KEY:
            yield Finding("wrong", f"{busy.count(key)} executions of key {key} were at work at once (line {position})")


def most_at_once(account: Account, told: Mapping[str, Prediction]) -> int:
    """How many of the queue were at work at once, by all lines of the ledger: where that is 1, nothing is proved."""
    changes: list[tuple[int, int, str]] = []
    for (name, step), begins in account.begins.items():
        if name in told and told[name].key is not None:
            for begin in begins:
                over = min(account.end((name, step), begin), account.gone(begin))
                changes += [(begin.position, 1, name), (over, -1, name)]
    at_work = Counter[str]()
    most = 0
    for _, change, name in sorted(changes):
        at_work[name] += change
        most = max(most, sum(count > 0 for count in at_work.values()))
    return most
