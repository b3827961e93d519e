"""A trip that is booked in parts, and cancelled in parts when one of them cannot be had.

Each booking names what takes it back. When the block raises, these undos run, the newest first; each is a durable step that is retried
until it has succeeded, also when the worker dies half way, when the execution is cancelled or when its deadline passes.

Run it with ``python -m examples.saga_booking``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import (
    DurableScheduler,
    RetryConfig,
    StepFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    context,
    zart_step,
)


class Trip(Struct, frozen=True):
    traveller: str
    city: str
    seats_left: int


class Booking(Struct, frozen=True):
    what: str
    number: str


class NoSeats(Exception):
    """The flight is full."""


class Agency:
    """Stands in for the services where things are booked."""

    async def hotel(self, trip: Trip) -> Booking:
        return self._book("hotel", trip)

    async def car(self, trip: Trip) -> Booking:
        return self._book("car", trip)

    async def flight(self, trip: Trip) -> Booking:
        if trip.seats_left == 0:
            print("No seat left on the flight")
            raise NoSeats(trip.city)
        return self._book("flight", trip)

    def _book(self, what: str, trip: Trip) -> Booking:
        print(f"Booked a {what} in {trip.city}")
        return Booking(what, f"{what}-{trip.city}")


# An undo may be a step of its own, with its own retries: this one fails once.
@zart_step("cancel-booking", retry=RetryConfig.fixed(5, "20ms"))
async def cancel_booking(booking: Booking) -> None:
    if booking.what == "car" and not context().is_retry():
        print("The car rental does not answer")
        raise ConnectionError("no answer")
    print(f"Cancelled {booking.number}")


class BookTrip(TaskHandler[Trip, str]):
    name = "book-trip"

    def __init__(self, agency: Agency) -> None:
        self.agency = agency

    async def run(self, ctx: TaskContext, data: Trip) -> str:
        try:
            async with ctx.saga():
                await ctx.step("hotel", self.agency.hotel, data, undo=cancel_booking)
                await ctx.step("car", self.agency.car, data, undo=cancel_booking)
                flight = await ctx.step("flight", self.agency.flight, data, undo=cancel_booking)
        except StepFailed as failed:
            return f"{data.traveller} stays at home: no {failed.step} to {failed.error}"
        return f"{data.traveller} goes by {flight.number}"


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(BookTrip(Agency()))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        happy = await durable.start(BookTrip, Trip("Ada", "Oslo", seats_left=3))
        print(await happy.result(timeout="60s"))
        handle = await durable.start(BookTrip, Trip("Bob", "Rome", seats_left=0))
        print(await handle.result(timeout="60s"))

        history = await durable.history(handle.execution_id)
        undone = [step for step in history.steps if step.kind == "undo"]
        print("Undone:", ", ".join(f"{step.name} ({step.attempts} attempts)" for step in undone))


if __name__ == "__main__":
    asyncio.run(main())
