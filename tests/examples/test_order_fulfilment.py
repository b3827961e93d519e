from __future__ import annotations

from pathlib import Path

from examples import order_fulfilment
from examples.order_fulfilment import Carrier, Fulfilment, FulfilOrder, Order, Payments
from tests.examples.conftest import Lines
from tests.examples.database import calls, histories
from tests.examples.programs import lines_on, lines_on_a_file
from zart_core import TaskRegistry
from zart_core.testing import TestEngine

STORY = [
    "[Ada] 4200 cents charged",
    "[Ada] pick-up booked",
    "[Ada] => shipped (with Grace)",
    "Sent twice, started 1 time",
    "Calls to the provider: 3, charges: 1",
    "[Bob] 990 cents charged",
    "[Bob] pick-up booked",
    "[Bob] pick-up called off",
    "[Bob] => taken back (990 cents refunded, EventTimeout)",
]


def check_what_is_stored(url: str) -> None:
    ada, bob = histories(url, "fulfil-order")

    assert (ada.execution.execution_id[-2:], ada.execution.status) == ("-1", "completed")
    assert calls(ada) == ["step charge (3 attempts)", "sleep change-of-mind", "step book-pick-up", "event picked-up"]
    assert [failed.error.message for failed in ada.steps[0].failures] == [
        "connection refused",
        "connection lost while waiting for the answer",
    ]
    # The message that came twice is there once, and was read.
    assert [(event.payload, event.read_by) for event in ada.events] == [({"driver": "Grace"}, "picked-up")]

    assert (bob.execution.execution_id[-2:], bob.execution.status) == ("-2", "completed")
    assert calls(bob) == [
        "step charge",
        "sleep change-of-mind",
        "step book-pick-up",
        "event picked-up",
        "failure on_failure",
        "step call-off",
        "step refund",
    ]
    assert [step.output for step in bob.steps if step.name == "refund"] == [990]


def test_one_order_is_shipped_and_the_other_taken_back(lines_in_memory: Lines) -> None:
    assert lines_in_memory(order_fulfilment.main) == STORY


def test_it_tells_and_stores_the_same_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("order_fulfilment", tmp_path) == STORY
    check_what_is_stored(f"sqlite:///{tmp_path}/examples.db")


def test_it_tells_and_stores_the_same_on_postgres(empty_postgres: str) -> None:
    assert lines_on("order_fulfilment", empty_postgres) == STORY
    check_what_is_stored(empty_postgres)


async def test_money_whose_every_answer_was_lost_is_refunded() -> None:
    class Silent(Payments):
        async def charge(self, order: Order, idempotency_key: str) -> None:
            self.charges[idempotency_key] = order
            raise ConnectionError("connection lost while waiting for the answer")

    payments = Silent()
    registry = TaskRegistry()
    registry.register(FulfilOrder(payments, Carrier()))
    async with TestEngine(registry, replay="always") as engine:
        handle = await engine.start(FulfilOrder, Order("order-1", "Carol", 100))
        await engine.advance("1m")
        assert await handle.result() == Fulfilment("taken back", "100 cents refunded, ConnectionError")
    assert payments.charges == {}
