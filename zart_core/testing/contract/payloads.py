"""Payloads are bytes that the store never looks into. # B13"""

from __future__ import annotations

from zart_core.testing.contract.bench import Bench, Contract, on_bench
from zart_core.testing.contract.hand import (
    attempt,
    attempt_row,
    details,
    finish,
    pending,
    publish,
    step,
    step_row,
    suspend,
)

MEGABYTE = bytes(range(256)) * 4_096
ODD = (b"", b"\x00", b"\x00\x00end", bytes(range(256)), b"\xff\xfe\x80", b"null", b"'; DROP TABLE", b"\\x00", MEGABYTE)


class PayloadContract(Contract):
    @on_bench
    async def test_every_payload_comes_back_as_it_went_in(self, bench: Bench) -> None:
        hand = await bench.hand()
        for n, payload in enumerate(ODD):
            execution_id = f"a-{n}"
            await bench.start(execution_id, input=payload)
            await bench.offer(execution_id, payload=payload)
            run = await hand.take(execution_id)
            assert run.input == payload
            assert [event.payload for event in run.events] == [payload]
            rows = [
                step_row("done", output=payload, at=1),
                step_row("broken", "failed", error=payload, at=2),
                step_row("open", "pending", details=payload, at=3),
                step_row("beating", "pending", at=4),
            ]
            await hand.record(
                *(step(run, row) for row in rows),
                attempt(run, attempt_row("broken", error=payload)),
                details(run, "beating", payload),
                publish(run, "k", payload),
                suspend(run, wake_at=0, error=payload),
            )
            assert (await bench.row(execution_id)).error == payload
            again = await hand.take(execution_id)
            steps = {row.name: row for row in again.steps}
            assert steps["done"].output == payload
            assert steps["broken"].error == payload
            assert steps["open"].details == payload
            assert steps["beating"].details == payload
            assert (await bench.scheduler.published(execution_id)) == {"k": payload}
            await hand.record(finish(again, "failed", output=payload, error=payload))
            history = await bench.history(execution_id)
            assert (history.execution.input, history.execution.output) == (payload, payload)
            assert history.execution.error == payload
            assert [row.error for row in history.attempts] == [payload]

    @on_bench
    async def test_fifty_megabytes_come_back_as_they_went_in(self, bench: Bench) -> None:
        huge = MEGABYTE * 50
        hand, run = await bench.running("a")
        await hand.record(pending(run, "small"), step(run, step_row("huge", output=huge)), suspend(run, wake_at=0))
        again = await hand.take("a")
        assert {row.name: row.output for row in again.steps}["huge"] == huge
        await hand.record(finish(again))

    @on_bench
    async def test_many_large_payloads_fit_into_one_flush_and_one_claim(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        outputs = {f"step-{n}": bytes([n]) + MEGABYTE for n in range(10)}
        await hand.record(
            *(step(run, step_row(name, output=output)) for name, output in outputs.items()), suspend(run, wake_at=0)
        )
        assert {row.name: row.output for row in (await hand.take("a")).steps} == outputs
