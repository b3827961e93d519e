"""Retries against a flaky service, without charging anybody twice.

The payment service refuses the first call, and takes the money on the second but loses its answer. A step does not know which
of the two happened; the idempotency key, equal on every attempt, lets the service recognise the repetition.

Run it with ``python -m examples.retry_simulation``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, RetryConfig, TaskContext, TaskHandler, TaskRegistry, Worker, context


class Order(Struct, frozen=True):
    order_id: str
    cents: int


class Receipt(Struct, frozen=True):
    number: int
    cents: int


class PaymentService:
    """Stands in for a payment provider that has a bad day."""

    def __init__(self) -> None:
        self.calls = 0
        self.charges: dict[str, Receipt] = {}

    async def charge(self, cents: int, idempotency_key: str) -> Receipt:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("connection refused")
        receipt = self.charges.setdefault(idempotency_key, Receipt(len(self.charges) + 1, cents))
        if self.calls == 2:
            raise ConnectionError("connection lost while waiting for the answer")
        return receipt


class Payment(TaskHandler[Order, Receipt]):
    name = "payment"

    def __init__(self, service: PaymentService) -> None:
        self.service = service

    async def run(self, ctx: TaskContext, data: Order) -> Receipt:
        # Up to three re-tries, after about 0.1, 0.2 and 0.4 s. The count and the time of the next attempt survive a restart.
        return await ctx.step("charge-card", self.charge, data.cents, retry=RetryConfig.exponential(3, "100ms"))

    async def charge(self, cents: int) -> Receipt:
        info = context()
        kind = "again" if info.is_retry() else "first"
        print(f"Attempt {info.current_attempt} ({kind}), key {info.idempotency_key[:8]}…")
        return await self.service.charge(cents, info.idempotency_key)


async def main() -> None:
    scheduler = database()
    service = PaymentService()
    registry = TaskRegistry()
    registry.register(Payment(service))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(Payment, Order("order-1", 4_200))
        receipt = await handle.result(timeout="60s")
        print(f"Receipt {receipt.number} over {receipt.cents} cents")
        print(f"Calls to the service: {service.calls}, charges: {len(service.charges)}")

        # Every failed attempt is kept, with its traceback, for whoever asks later what happened.
        for step in (await durable.history(handle.execution_id)).steps:
            print(f"{step.name}: {step.status} after {step.attempts} attempts")
            for failed in step.failures:
                print(f"  {failed.attempt}: {failed.error}")


if __name__ == "__main__":
    asyncio.run(main())
