"""What to do when a step fails: decide by its outcome, fall back, or let the execution fail and clean up.

Four orders take the four ways: everything works, the card is declined, the courier is slow, the payment service is down.

Run it with ``python -m examples.error_handling``.
"""

import asyncio
from typing import Literal

from msgspec import Struct
from tenacity import retry_if_exception_type, stop_after_attempt, wait_fixed

from examples._database import database
from zart_core import (
    BusinessErr,
    DurableScheduler,
    ExecutionFailure,
    Ok,
    RetryConfig,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    ZartErr,
)


class CardDeclined(Exception):
    """A business error: the answer is no, and it will be no again."""


class UnknownAddress(Exception):
    """A business error of the shipping service."""


class Order(Struct, frozen=True):
    order_id: str
    card: str
    address: str


class Confirmation(Struct, frozen=True):
    status: Literal["shipped", "declined", "cancelled"]
    details: str


class Shop:
    """Stands in for the services behind a shop."""

    async def reserve_stock(self, order_id: str) -> None:
        print(f"[{order_id}] stock reserved")

    async def release_stock(self, order_id: str) -> None:
        print(f"[{order_id}] stock released")

    async def charge(self, card: str) -> str:
        if card == "empty":
            raise CardDeclined("insufficient funds")
        if card == "offline":
            raise ConnectionError("the payment service does not answer")
        return f"payment with {card}"

    async def shipping_cents(self, address: str) -> int:
        if address == "far away":
            raise UnknownAddress(address)
        return 490

    async def recommendations(self, order_id: str) -> list[str]:
        raise ConnectionError("the recommendation service is down, as always")

    async def book_courier(self, address: str) -> str:
        if address == "far away":
            await asyncio.sleep(3600)
        return "courier"

    async def book_post(self, address: str) -> str:
        return "post"


# Repeating helps against a bad connection, not against a declined card.
CHARGE_RETRY = RetryConfig(
    stop=stop_after_attempt(2), wait=wait_fixed(0.05), retry=retry_if_exception_type(ConnectionError)
)


class Checkout(TaskHandler[Order, Confirmation]):
    name = "checkout"

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def run(self, ctx: TaskContext, data: Order) -> Confirmation:
        await ctx.step("reserve-stock", self.shop.reserve_stock, data.order_id)

        match await ctx.outcome("charge", self.shop.charge, data.card, retry=CHARGE_RETRY):
            case Ok(value):
                payment = value
            case BusinessErr(CardDeclined() as declined):
                await ctx.step("release-stock", self.shop.release_stock, data.order_id)
                return Confirmation("declined", str(declined))
            case BusinessErr(error):
                raise error
            case ZartErr(
                error
            ):  # retries exhausted, timed out, …: nothing to decide here, on_failure has the last word
                raise error

        # The step's own error has an answer. A failure of the framework would still raise.
        cents = await ctx.step_or_else("quote", self.shop.shipping_cents, data.address, fallback=flat_rate)

        # Nice to have: any failure gives the default.
        nothing: list[str] = []
        tips = await ctx.step_or("recommend", self.shop.recommendations, data.order_id, default=nothing)

        try:
            carrier = await ctx.step("book-courier", self.shop.book_courier, data.address, timeout="200ms")
        except StepTimedOut:
            carrier = await ctx.step("book-post", self.shop.book_post, data.address)
        return Confirmation("shipped", f"{payment}, {cents} cents by {carrier}, {len(tips)} recommendations")

    async def on_failure(self, ctx: TaskContext, data: Order, failure: ExecutionFailure) -> Confirmation:
        # Compensation is a step like any other: it survives a crash and is not run twice.
        await ctx.step("release-stock", self.shop.release_stock, data.order_id)
        # A value completes the execution. Raising, or no on_failure at all, would fail it.
        return Confirmation("cancelled", f"{failure.step} failed {failure.attempts} times: {failure.error.message}")


def flat_rate(error: BaseException) -> int:
    return 1_990


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(Checkout(Shop()))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        for order in (
            Order("order-1", card="visa", address="next door"),
            Order("order-2", card="empty", address="next door"),
            Order("order-3", card="visa", address="far away"),
            Order("order-4", card="offline", address="next door"),
        ):
            confirmation = await durable.start_and_wait(Checkout, order, timeout="60s")
            print(f"[{order.order_id}] {confirmation.status}: {confirmation.details}")


if __name__ == "__main__":
    asyncio.run(main())
