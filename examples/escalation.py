"""Approval with escalation: a manager's answer races against a timer; when the timer wins, the director is asked as well.

The race is stored: once it is decided, every replay decides it the same, and what has lost is cancelled. A late answer is kept for the
next wait.

Run it with ``python -m examples.escalation``.
"""

import asyncio
from datetime import timedelta

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker


class Purchase(Struct, frozen=True):
    what: str
    patience: timedelta


class Answer(Struct, frozen=True):
    by: str
    approved: bool


class Post:
    """Stands in for the mails that are sent."""

    async def ask(self, who: str, purchase: Purchase) -> None:
        print(f"{who} is asked about {purchase.what}")


class Escalation(TaskHandler[Purchase, str]):
    name = "escalation"

    def __init__(self, post: Post) -> None:
        self.post = post

    async def run(self, ctx: TaskContext, data: Purchase) -> str:
        await ctx.step("ask-manager", self.post.ask, "the manager", data)
        answer = ctx.schedule_event("answer", Answer)
        patience = ctx.schedule_sleep("patience", data.patience)
        _, decision = await ctx.wait_any([answer, patience], name="manager-or-timer")
        if decision is None:
            await ctx.step("ask-director", self.post.ask, "the director", data)
            # Whoever answers first now; the manager may still do so.
            decision = await ctx.wait_for_event("answer", Answer)
        word = "approved" if decision.approved else "declined"
        return f"{data.what}: {word} by {decision.by}"


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(Escalation(Post()))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)

        desk = await durable.start(Escalation, Purchase("a desk", timedelta(days=3)))
        await desk.offer_event("answer", Answer("the manager", approved=True))
        print(await desk.result(timeout="60s"))

        yacht = await durable.start(Escalation, Purchase("a yacht", timedelta(seconds=0.2)))
        while (await yacht.status()).waiting_on is None or not await asked(durable, yacht.execution_id):
            await asyncio.sleep(0.01)
        await yacht.offer_event("answer", Answer("the director", approved=False))
        print(await yacht.result(timeout="60s"))


async def asked(durable: DurableScheduler, execution_id: str) -> bool:
    """Whether the director was asked."""
    history = await durable.history(execution_id)
    return any(step.name == "ask-director" and step.status == "completed" for step in history.steps)


if __name__ == "__main__":
    asyncio.run(main())
