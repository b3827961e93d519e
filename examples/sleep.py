"""Sleeping durably: the process may end while an execution sleeps.

A sleep is a row with a time in the database, not a timer in a process. Its end is fixed when it is first reached, so it is
neither shortened nor begun anew by a restart. Here the worker stops during the first sleep and another one goes on after it.

Run it with ``python -m examples.sleep``.
"""

import asyncio
from datetime import datetime, timedelta

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig


class Signup(Struct, frozen=True):
    email: str
    tips_after: timedelta
    trial: timedelta


class Trial(Struct, frozen=True):
    began_at: datetime
    ended_at: datetime


class Mailer:
    """Stands in for a mail service."""

    async def send(self, email: str, text: str) -> None:
        print(f"To {email}: {text}")


class Onboarding(TaskHandler[Signup, Trial]):
    name = "onboarding"

    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    async def run(self, ctx: TaskContext, data: Signup) -> Trial:
        # A stored time: datetime.now() would give another one on every replay.
        began_at = await ctx.now("began-at")
        await ctx.step("send-welcome", self.mailer.send, data.email, "Welcome!")

        # For a length of time …
        await ctx.sleep("wait-before-tips", data.tips_after)
        await ctx.step("send-tips", self.mailer.send, data.email, "Three things to try")

        # … and until a point in time.
        await ctx.sleep_until("trial-end", began_at + data.trial)
        await ctx.step("send-goodbye", self.mailer.send, data.email, "Your trial has ended")
        return Trial(began_at, ended_at=await ctx.now("ended-at"))


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(Onboarding(Mailer()))

    async with scheduler:
        durable = DurableScheduler(scheduler)
        # Days, in real life; a sleep of any length costs the same.
        signup = Signup("ada@example.com", tips_after=timedelta(seconds=1), trial=timedelta(seconds=2))
        handle = await durable.start(Onboarding, signup)

        # Without linger an execution leaves memory as soon as it waits; this worker then has nothing to do and returns.
        await Worker(scheduler, registry, WorkerConfig(linger=0)).run_until_idle()
        print(f"No worker is running now, and the execution is {(await handle.status()).status}")

        async with Worker(scheduler, registry):
            trial = await handle.result(timeout="60s")
        print(f"The trial took {(trial.ended_at - trial.began_at).total_seconds():.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
