"""Events from outside: kept in order, delivered once, seen by whoever holds the run."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from zart_core.errors import ExecutionFinished, ExecutionNotFound
from zart_core.records import Offer
from zart_core.testing.contract.bench import LAPSE, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import finish, step, step_row, suspend, watch


class SignalContract(Contract):
    @on_bench
    async def test_an_event_before_the_first_claim_comes_with_it(self, bench: Bench) -> None:  # B28
        before = bench.now()
        await bench.start("a")
        assert await bench.offer("a", "news", b"payload")
        run = await (await bench.hand()).take("a")
        [event] = run.events
        assert (event.name, event.payload) == ("news", b"payload")
        assert before <= event.sent_at <= bench.scheduler.clock.latest()
        assert run.signal_seq == 1

    @on_bench
    async def test_an_event_does_not_start_a_run_before_its_time(self, bench: Bench) -> None:
        await bench.start("a", delay=LAPSE)
        wake_at = (await bench.row("a")).wake_at
        await bench.offer("a")
        hand = await bench.hand()
        if await hand.claim():
            assert wake_at is not None
            bench.not_before(wake_at)
        await bench.pass_time(2 * LAPSE)
        assert len((await hand.take("a")).events) == 1

    @on_bench
    async def test_the_holder_sees_what_is_new(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("a")
        assert await hand.signals(run) == []
        await bench.offer("a", "one", b"1")
        await bench.offer("a", "two", b"2")
        [signals] = await hand.signals(run)
        assert (signals.run_id, signals.lost, signals.cancel_requested) == (run.run_id, False, False)
        assert [(event.name, event.payload) for event in signals.events] == [("one", b"1"), ("two", b"2")]
        assert signals.signal_seq == run.signal_seq + 2

        seen = watch(run, signals.signal_seq)
        assert await hand.look(seen) == []
        await bench.offer("a", "three", b"3")
        [more] = await hand.look(seen)
        assert [event.payload for event in more.events] == [b"3"]

    @on_bench
    async def test_looking_at_signals_takes_nothing_away(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.offer("a", payload=b"1")
        assert await hand.signals(run) == await hand.signals(run)
        await hand.record(suspend(run, wake_at=0))
        assert [event.payload for event in (await hand.take("a")).events] == [b"1"]

    @on_bench
    async def test_only_runs_with_something_new_are_in_the_answer(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start(*(f"a-{n}" for n in range(20)))
        runs = await hand.claim()
        for run in runs[::5]:
            await bench.offer(run.execution_id, payload=run.execution_id.encode())
        answers = {signals.run_id: signals for signals in await hand.signals(*runs)}
        assert set(answers) == {run.run_id for run in runs[::5]}
        for run in runs[::5]:
            assert [event.payload for event in answers[run.run_id].events] == [run.execution_id.encode()]
        assert await hand.look() == []

    @on_bench
    async def test_runs_that_are_not_held_are_lost(self, bench: Bench) -> None:  # B57
        hand = await bench.hand()
        await bench.start("kept", "suspended", "finished", "stale")
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(suspend(runs["suspended"], on_signal=True), finish(runs["finished"]))
        watched = [*runs.values()]
        watched[watched.index(runs["stale"])] = replace(runs["stale"], epoch=runs["stale"].epoch - 1)
        answers = await hand.signals(*watched, replace(runs["kept"], run_id=10**12))
        lost = {signals.run_id for signals in answers if signals.lost}
        assert lost == {runs[i].run_id for i in ("suspended", "finished", "stale")} | {10**12}
        assert len(answers) == len(lost)
        stranger = await bench.hand()
        assert [signals.lost for signals in await stranger.signals(runs["kept"])] == [True]

    @on_bench
    async def test_a_dead_workers_runs_are_lost(self, bench: Bench) -> None:  # B57
        mortal = await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", mortal)
        await bench.offer("a")
        await bench.bury(mortal)
        assert [signals.lost for signals in await mortal.signals(run)] == [True]

    @on_bench
    async def test_events_keep_their_order_within_a_microsecond(self, bench: Bench) -> None:  # B29
        hand, run = await bench.running("a")
        sent = [(f"name-{n % 3}", str(n).encode()) for n in range(60)]
        for name, payload in sent:
            assert await bench.offer("a", name, payload)
        [signals] = await hand.signals(run)
        assert [(event.name, event.payload) for event in signals.events] == sent
        seqs = [event.seq for event in signals.events]
        assert seqs == sorted(set(seqs))
        assert (await bench.history("a")).events == signals.events
        await hand.record(suspend(run, wake_at=0))
        assert (await hand.take("a")).events == signals.events

    @on_bench
    async def test_events_offered_at_once_all_arrive(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("a")
        views = await bench.views(3)
        payloads = [str(n).encode() for n in range(60)]
        offers = [Offer(execution_id="a", name="news", payload=payload) for payload in payloads]
        answers = await asyncio.gather(*(views[n % 3].offer_event(offer) for n, offer in enumerate(offers)))
        assert all(answers)
        [signals] = await hand.signals(run)
        assert sorted(event.payload for event in signals.events) == sorted(payloads)
        assert len({event.seq for event in signals.events}) == 60
        assert signals.signal_seq == run.signal_seq + 60

    @on_bench
    async def test_an_event_id_is_delivered_once(self, bench: Bench) -> None:  # B30
        hand, run = await bench.running("a")
        assert await bench.offer("a", "news", b"first", event_id="id")
        assert not await bench.offer("a", "news", b"second", event_id="id")
        assert not await bench.offer("a", "other-name", b"third", event_id="id")
        assert await bench.offer("a", "news", b"fourth", event_id="ID")
        [signals] = await hand.signals(run)
        assert [event.payload for event in signals.events] == [b"first", b"fourth"]
        assert signals.signal_seq == run.signal_seq + 2

    @on_bench
    async def test_an_event_id_stays_used_after_the_event_was_read(self, bench: Bench) -> None:  # B30
        hand, run = await bench.running("a")
        await bench.offer("a", "news", b"first", event_id="id")
        [signals] = await hand.signals(run)
        seq = signals.events[0].seq
        await hand.record(
            step(run, step_row("news", kind="event", event_seq=seq)),
            suspend(run, on_signal=True, seen=signals.signal_seq),
        )
        assert not await bench.offer("a", "news", b"again", event_id="id")
        assert await hand.claim() == []
        await bench.offer("a", "news", b"new", event_id="id-2")
        assert [event.payload for event in (await hand.take("a")).events if event.seq > seq] == [b"new"]

    @on_bench
    async def test_event_ids_belong_to_their_execution(self, bench: Bench) -> None:  # B30
        await bench.start("a", "b")
        assert await bench.offer("a", event_id="id")
        assert await bench.offer("b", event_id="id")

    @on_bench
    async def test_events_without_an_id_are_all_different(self, bench: Bench) -> None:
        await bench.start("a")
        for _ in range(3):
            assert await bench.offer("a", "news", b"same")
        assert len((await bench.history("a")).events) == 3

    @on_bench
    async def test_an_empty_event_id_is_an_id(self, bench: Bench) -> None:
        await bench.start("a")
        assert await bench.offer("a", event_id="")
        assert not await bench.offer("a", event_id="")
        assert await bench.offer("a", event_id=None)

    @on_bench
    async def test_an_event_for_nobody_and_one_for_the_finished_are_two_errors(self, bench: Bench) -> None:  # B32
        hand, run = await bench.running("a")
        await hand.record(finish(run))
        before = await bench.history("a")
        with raises(ExecutionNotFound):
            await bench.offer("nobody")
        with raises(ExecutionFinished):
            await bench.offer("a")
        assert await bench.history("a") == before
        assert await hand.claim() == []

    @on_bench
    async def test_an_event_reaches_only_the_execution_named(self, bench: Bench) -> None:  # B52
        await bench.start("a_b", "a-b", "a%", "A_B")
        await bench.offer("a_b", payload=b"mine")
        assert {i: len((await bench.history(i)).events) for i in ("a_b", "a-b", "a%", "A_B")} == {
            "a_b": 1,
            "a-b": 0,
            "a%": 0,
            "A_B": 0,
        }

    @on_bench
    async def test_event_names_and_ids_may_be_any_text(self, bench: Bench) -> None:
        texts = ["news", "News", "новости", "日本", "😀", "a'b", 'a"b', "a\\b", "%", "_", "a\nb", "x" * 500]
        await bench.start("a")
        for text in texts:
            assert await bench.offer("a", text, text.encode(), event_id=text)
            assert not await bench.offer("a", text, b"again", event_id=text)
        events = (await bench.history("a")).events
        assert [(event.name, event.payload.decode()) for event in events] == [(text, text) for text in texts]
