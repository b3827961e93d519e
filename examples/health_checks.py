"""Parallel health checks: each service is checked by a step of its own, which any worker may run, and one that is down fails nothing.

Run it with ``python -m examples.health_checks``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import (
    BusinessErr,
    DurableScheduler,
    Ok,
    RetryExhausted,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    ZartErr,
)


class Service(Struct, frozen=True):
    name: str
    url: str


class Health(Struct, frozen=True):
    latency_ms: int


class ServiceDownError(Exception):
    """What a check raises."""


class Network:
    """Stands in for the services: one is down, and one answers at the second attempt."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}

    async def ping(self, service: Service) -> int:
        self.attempts[service.name] = self.attempts.get(service.name, 0) + 1
        if service.name == "search":
            raise ServiceDownError("connection refused")
        if service.name == "mail" and self.attempts["mail"] == 1:
            raise TimeoutError("no answer")
        return 10 * len(service.name)


class HealthCheck(TaskHandler[list[Service], list[str]]):
    name = "health-check"

    def __init__(self, network: Network) -> None:
        self.network = network

    async def run(self, ctx: TaskContext, data: list[Service]) -> list[str]:
        # Nothing is awaited here: all checks begin at once. A method of the handler may run in any worker: its name and its
        # arguments go there, so the parameter says what it takes.
        checks = [
            ctx.schedule(f"check-{service.name}", self.check, service, retry="fixed(1, 10ms)") for service in data
        ]
        # Holds no worker meanwhile. The results come in the order of the handles, whoever was done first.
        report: list[str] = []
        for service, result in zip(data, await ctx.wait(checks), strict=True):
            match result:
                case Ok(health):
                    report.append(f"{service.name}: up ({health.latency_ms} ms)")
                case ZartErr(RetryExhausted() as gave_up):
                    report.append(f"{service.name}: down ({gave_up.message})")
                case BusinessErr(error) | ZartErr(error):
                    report.append(f"{service.name}: no result ({type(error).__name__})")
        return report

    async def check(self, service: Service) -> Health:
        return Health(await self.network.ping(service))


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(HealthCheck(Network()))

    services = [Service(name, f"https://{name}.example.com") for name in ("shop", "search", "mail")]
    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(HealthCheck, services)
        for line in await handle.result(timeout="60s"):
            print(line)
        steps = (await durable.history(handle.execution_id)).steps
        attempts = {step.name: step.attempts for step in steps}
        print(f"attempts: {attempts['check-shop']}, {attempts['check-search']}, {attempts['check-mail']}")


if __name__ == "__main__":
    asyncio.run(main())
