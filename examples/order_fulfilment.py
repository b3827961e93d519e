"""An order from the payment to the carrier's pick-up: retries, a durable sleep, an event from outside, and compensation.

For Ada the payment provider has a bad day, and her parcel is picked up. For Bob the carrier never comes: his order is taken back.

Run it with ``python -m examples.order_fulfilment``.
"""

import asyncio
from datetime import timedelta
from typing import Literal
from uuid import uuid4

from msgspec import Struct

from examples._database import database
from zart_core import (
    DurableScheduler,
    ExecutionFailure,
    RetryConfig,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    context,
)


class Order(Struct, frozen=True):
    id: str
    customer: str
    cents: int
    pick_up_within: timedelta = timedelta(days=2)


class PickUp(Struct, frozen=True):
    driver: str


class Fulfilment(Struct, frozen=True):
    status: Literal["shipped", "taken back"]
    details: str


class Payments:
    """Stands in for a payment provider: the first call is refused, the second takes the money but loses the answer."""

    def __init__(self) -> None:
        self.calls = 0
        self.charges: dict[str, Order] = {}  # by idempotency key

    async def charge(self, order: Order, idempotency_key: str) -> None:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("connection refused")
        if idempotency_key not in self.charges:
            self.charges[idempotency_key] = order
            print(f"[{order.customer}] {order.cents} cents charged")
        if self.calls == 2:
            raise ConnectionError("connection lost while waiting for the answer")

    async def refund(self, order_id: str) -> int:
        """Give back what was paid for the order, if anything was."""
        paid = [key for key, order in self.charges.items() if order.id == order_id]
        return sum(self.charges.pop(key).cents for key in paid)


class Carrier:
    """Stands in for a carrier."""

    async def book(self, order: Order) -> None:
        print(f"[{order.customer}] pick-up booked")

    async def call_off(self, order: Order) -> None:
        print(f"[{order.customer}] pick-up called off")


class FulfilOrder(TaskHandler[Order, Fulfilment]):
    name = "fulfil-order"

    def __init__(self, payments: Payments, carrier: Carrier) -> None:
        self.payments = payments
        self.carrier = carrier

    async def run(self, ctx: TaskContext, data: Order) -> Fulfilment:
        await ctx.step("charge", self.charge, data, retry=RetryConfig.exponential(4, "50ms"))
        await ctx.publish("progress", "paid")

        # The customer may still change their mind: half an hour, in real life. It outlives restarts, and holds nothing meanwhile.
        await ctx.sleep("change-of-mind", "200ms")

        await ctx.step("book-pick-up", self.carrier.book, data, retry="exponential(3, 1s)")
        await ctx.publish("progress", "waiting for the carrier")
        # When nobody comes in time, EventTimeout is not caught here: it fails the execution, and on_failure has the last word.
        pick_up = await ctx.wait_for_event("picked-up", PickUp, timeout=data.pick_up_within)
        await ctx.publish("progress", "on its way")
        return Fulfilment("shipped", f"with {pick_up.driver}")

    async def on_failure(self, ctx: TaskContext, data: Order, failure: ExecutionFailure) -> Fulfilment:
        # It may be called after any line of run, also after a charge that failed and took the money all the same. So it relies on
        # nothing but the order, and both calls do no harm where there is nothing to take back.
        await ctx.step("call-off", self.carrier.call_off, data, retry="exponential(10, 1s)")
        cents = await ctx.step("refund", self.payments.refund, data.id, retry="exponential(10, 1s)")
        await ctx.publish("progress", "taken back")
        return Fulfilment("taken back", f"{cents} cents refunded, {failure.error.type}")

    async def charge(self, order: Order) -> None:
        # The key is equal on every attempt, also after a crash: the provider knows a repetition from a second charge.
        await self.payments.charge(order, context().idempotency_key)


async def main() -> None:
    scheduler = database()
    payments = Payments()
    registry = TaskRegistry()
    registry.register(FulfilOrder(payments, Carrier()))
    batch = uuid4().hex[:8]  # the database may have seen this before

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)

        # The order's number is the execution's id: an order that is sent twice is fulfilled once.
        order = Order(f"order-{batch}-1", "Ada", 4_200)
        ada, again = [await durable.start(FulfilOrder, order, execution_id=order.id) for _ in range(2)]
        while (await durable.published(order.id)).get("progress") != "waiting for the carrier":
            await asyncio.sleep(0.02)
        # The carrier's web hook knows the order's number and nothing else. It may come twice, too: its message's id tells.
        for _ in range(2):
            await durable.offer_event(order.id, "picked-up", PickUp("Grace"), event_id="message-17")
        print_end(order, await ada.result(timeout="60s"))
        print(f"Sent twice, started {ada.created + again.created} time")
        print(f"Calls to the provider: {payments.calls}, charges: {len(payments.charges)}")

        order = Order(f"order-{batch}-2", "Bob", 990, pick_up_within=timedelta(seconds=0.3))
        bob = await durable.start(FulfilOrder, order, execution_id=order.id)
        print_end(order, await bob.result(timeout="60s"))


def print_end(order: Order, end: Fulfilment) -> None:
    print(f"[{order.customer}] => {end.status} ({end.details})")


if __name__ == "__main__":
    asyncio.run(main())
