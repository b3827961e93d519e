"""The facts of one group commit, and the answer to them."""

from __future__ import annotations

from collections.abc import Container, Sequence

from msgspec import Struct

from zart_core.records.facts import (
    AttemptFact,
    ChildFact,
    ContinueFact,
    DetailsFact,
    Fact,
    FinishFact,
    PublishFact,
    RetryFact,
    StepFact,
    SuspendFact,
)


class Flush(Struct, frozen=True, kw_only=True):
    """Facts of any number of runs held by one worker, made durable in the order of these fields, those of one run by one commit.

    A backend may use one for all of them, or one for the runs that it has a short way for and another for the others. ``continues``, and
    those of ``suspends`` that a pause holds, may have a commit of their own after that of all else.
    """

    worker_id: int
    steps: list[StepFact] = []
    children: list[ChildFact] = []
    attempts: list[AttemptFact] = []
    details: list[DetailsFact] = []
    published: list[PublishFact] = []
    retries: list[RetryFact] = []
    finishes: list[FinishFact] = []
    continues: list[ContinueFact] = []
    suspends: list[SuspendFact] = []
    patience: int | None = None
    """How long, in microseconds, to wait for runs that somebody else has locked (a user's transaction may be open for long),
    before they are left out and reported as busy. ``None``: as long as it takes."""

    def facts(self) -> list[Fact]:
        """All of them."""
        return [
            *self.steps,
            *self.children,
            *self.attempts,
            *self.details,
            *self.published,
            *self.retries,
            *self.finishes,
            *self.continues,
            *self.suspends,
        ]

    def runs(self) -> list[int]:
        """The runs that have facts here, each once."""
        return list(dict.fromkeys(fact.run_id for fact in self.facts()))

    def of(self, runs: Container[int]) -> Flush:
        """The same flush with the facts of these runs only."""
        return Flush(
            worker_id=self.worker_id,
            steps=[fact for fact in self.steps if fact.run_id in runs],
            children=[fact for fact in self.children if fact.run_id in runs],
            attempts=[fact for fact in self.attempts if fact.run_id in runs],
            details=[fact for fact in self.details if fact.run_id in runs],
            published=[fact for fact in self.published if fact.run_id in runs],
            retries=[fact for fact in self.retries if fact.run_id in runs],
            finishes=[fact for fact in self.finishes if fact.run_id in runs],
            continues=[fact for fact in self.continues if fact.run_id in runs],
            suspends=[fact for fact in self.suspends if fact.run_id in runs],
            patience=self.patience,
        )


class Flushed(Struct, frozen=True):
    """What did not go as asked, by run_id. A run in none of them: all its facts are durable.

    ``lost``: its lease is not this worker's any more and nothing of it was written. ``refused``: its suspension, finish or
    continuation was refused, all other facts are durable. ``cancelled``: a cancellation was accepted for it. ``busy``: somebody else has locked
    it, or what it ends, for longer than the flush's ``patience``; its facts have to be flushed again, all of them.
    """

    lost: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    cancelled: frozenset[int] = frozenset()
    busy: frozenset[int] = frozenset()

    @staticmethod
    def together(answers: Sequence[Flushed]) -> Flushed:
        """One answer for all."""
        return Flushed(
            frozenset[int]().union(*(answer.lost for answer in answers)),
            frozenset[int]().union(*(answer.refused for answer in answers)),
            frozenset[int]().union(*(answer.cancelled for answer in answers)),
            frozenset[int]().union(*(answer.busy for answer in answers)),
        )
