"""Waiting for a person: an execution parks until its event comes, or until nobody has answered in time.

Three requests: one is approved, one is declined, one gets no answer.

Run it with ``python -m examples.approval``.
"""

import asyncio
from datetime import timedelta
from typing import Literal

from msgspec import Struct

from examples._database import database
from zart_core import (
    DurableScheduler,
    EventTimeout,
    ExecutionFinished,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
)


class AccessRequest(Struct, frozen=True):
    requester: str
    resource: str
    answer_within: timedelta = timedelta(days=1)


class Decision(Struct, frozen=True):
    approved: bool
    reviewer: str
    comment: str = ""


class Verdict(Struct, frozen=True):
    status: Literal["granted", "declined", "expired"]
    reason: str


class AccessControl:
    """Stands in for the systems that a request touches."""

    async def ask_manager(self, request: AccessRequest) -> None:
        print(f"{request.requester} asks for {request.resource}")

    async def grant(self, requester: str, resource: str) -> None:
        print(f"{requester} may now use {resource}")

    async def escalate(self, request: AccessRequest) -> None:
        print(f"Nobody answered {request.requester}: the security team is told")


class Approval(TaskHandler[AccessRequest, Verdict]):
    name = "approval"

    def __init__(self, access: AccessControl) -> None:
        self.access = access

    async def run(self, ctx: TaskContext, data: AccessRequest) -> Verdict:
        await ctx.step("ask-manager", self.access.ask_manager, data)
        try:
            # Holds no worker, thread or connection, however long it takes. The timeout is durable: a restart does not extend it.
            decision = await ctx.wait_for_event("manager-approval", Decision, timeout=data.answer_within)
        except EventTimeout:
            await ctx.step("escalate", self.access.escalate, data)
            return Verdict("expired", "no answer in time")
        if not decision.approved:
            return Verdict("declined", f"{decision.reviewer}: {decision.comment}")
        await ctx.step("grant", self.access.grant, data.requester, data.resource)
        return Verdict("granted", f"approved by {decision.reviewer}")


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(Approval(AccessControl()))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)

        ada = await durable.start(Approval, AccessRequest("Ada", "the archive"))
        # An event is kept from the start of the execution on, so it does not matter whether the wait has been reached yet.
        # Whoever knows the execution's id can offer it, from any process: durable.offer_event(execution_id, …).
        await ada.offer_event("manager-approval", Decision(approved=True, reviewer="Grace"))
        print_verdict(await ada.result(timeout="60s"))

        bob = await durable.start(Approval, AccessRequest("Bob", "the vault"))
        # The payload is checked where it is read, so any client may write it as plain JSON.
        refusal = {"approved": False, "reviewer": "Grace", "comment": "not this quarter"}
        await bob.offer_event("manager-approval", refusal)
        print_verdict(await bob.result(timeout="60s"))

        request = AccessRequest("Carol", "the roof", answer_within=timedelta(seconds=0.3))
        carol = await durable.start(Approval, request)
        print_verdict(await carol.result(timeout="60s"))
        try:
            await carol.offer_event("manager-approval", Decision(approved=True, reviewer="Grace"))
        except ExecutionFinished:
            print("Grace's answer came too late")


def print_verdict(verdict: Verdict) -> None:
    print(f"=> {verdict.status} ({verdict.reason})")


if __name__ == "__main__":
    asyncio.run(main())
