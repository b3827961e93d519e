"""Leases: a worker lives while it is heard of; what it held is free at once when it is gone."""

from __future__ import annotations

import asyncio

from zart_core.duration import SECOND
from zart_core.errors import LeaseLost
from zart_core.records import Flushed
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import completed, finish, suspend


class LeaseContract(Contract):
    @on_bench
    async def test_every_worker_gets_an_id_of_its_own(self, bench: Bench) -> None:
        views = await bench.views(2)
        hands = [await bench.hand(view) for _ in range(5) for view in views]
        assert len({hand.worker_id for hand in hands}) == 10
        hands = await asyncio.gather(*(bench.hand(views[n % 2]) for n in range(10)))
        assert len({hand.worker_id for hand in hands}) == 10

    @on_bench
    async def test_worker_ids_are_never_used_again(self, bench: Bench) -> None:  # B57
        seen: list[int] = []
        for _ in range(4):
            gone = await bench.hand()
            await gone.deregister()
            mortal = await bench.hand(lease=LAPSE)
            await bench.bury(mortal)
            seen += [gone.worker_id, mortal.worker_id]
        assert len(set(seen)) == 8

    @on_bench
    async def test_worker_ids_are_not_used_again_after_reopening(self, bench: Bench) -> None:  # B57
        scheduler = bench.unopened()
        seen: list[int] = []
        for _ in range(3):
            async with scheduler:
                hand = await bench.hand(scheduler)
                seen.append(hand.worker_id)
                await hand.deregister()
        assert len(set(seen)) == 3

    @on_bench
    async def test_a_heartbeat_extends_the_lease(self, bench: Bench) -> None:
        hand = await bench.hand(lease=LAPSE)
        await bench.running("a", hand)
        hand.lease = LONG
        await hand.heartbeat()
        await bench.pass_time(2 * LAPSE)
        assert (await bench.scheduler.reap(100)).freed == 0
        await hand.heartbeat()
        assert (await bench.row("a")).worker == hand.name

    @on_bench
    async def test_nobody_is_declared_dead_before_the_lease_has_passed(self, bench: Bench) -> None:  # B57
        hand = await bench.hand(lease=5 * SECOND)
        _, run = await bench.running("a", hand)
        assert (await bench.scheduler.reap(100)).freed == 0
        if bench.exact:
            await bench.pass_time(5 * SECOND - 1)
            assert (await bench.scheduler.reap(100)).freed == 0
        await hand.heartbeat()
        await hand.record(finish(run))

    @on_bench
    async def test_a_lease_runs_from_the_last_heartbeat(self, bench: Bench) -> None:
        hand = await bench.hand(lease=LONG)
        await bench.running("a", hand)
        hand.lease = LAPSE
        await hand.heartbeat()
        assert await bench.bury(hand) == 1

    @on_bench
    async def test_only_being_declared_dead_ends_a_lease(self, bench: Bench) -> None:
        hand = await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", hand)
        await bench.pass_time(2 * LAPSE)
        await hand.record(completed(run, "x"))
        hand.lease = LONG
        await hand.heartbeat()
        assert (await bench.scheduler.reap(100)).freed == 0
        await hand.record(finish(run))

    @on_bench
    async def test_a_dead_workers_runs_are_claimable_at_once(self, bench: Bench) -> None:  # B56
        mortal = await bench.hand(lease=LAPSE)
        await bench.start("a", "b", "c")
        runs = {run.execution_id: run for run in await mortal.claim()}
        await mortal.record(completed(runs["a"], "x", b"1"))
        assert await bench.bury(mortal) == 3
        heir = await bench.hand()
        heired = {run.execution_id: run for run in await heir.claim()}
        assert set(heired) == set(runs)
        assert all(heired[i].epoch > runs[i].epoch for i in runs)
        assert [(row.name, row.output) for row in heired["a"].steps] == [("x", b"1")]
        assert heired["a"].started_at == runs["a"].started_at
        assert heired["a"].attempt == 0

    @on_bench
    async def test_only_the_runs_of_expired_workers_are_freed(self, bench: Bench) -> None:  # B57
        mortal, other_mortal = await bench.hand(lease=LAPSE), await bench.hand(lease=LAPSE)
        living = await bench.hand()
        await bench.start("living-1", "living-2")
        held = await living.claim()
        await bench.running("a", mortal)
        await bench.running("b", other_mortal)
        assert await bench.bury(mortal, other_mortal) == 2
        assert (await bench.scheduler.reap(100)).freed == 0
        await living.record(*(completed(run, "x") for run in held))
        assert sorted(await living.claim_ids()) == ["a", "b"]

    @on_bench
    async def test_a_dead_worker_is_told_so(self, bench: Bench) -> None:  # B57
        mortal, idle = await bench.hand(lease=LAPSE), await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        await bench.bury(mortal, idle)
        for hand in (mortal, idle):
            hand.lease = LONG
            with raises(LeaseLost):
                await hand.heartbeat()
            with raises(LeaseLost):
                await hand.claim()
        assert await (await bench.hand()).claim_ids() == ["a"]

    @on_bench
    async def test_a_heartbeat_of_one_who_never_was_is_refused(self, bench: Bench) -> None:
        hand = await bench.hand()
        with raises(LeaseLost):
            await bench.scheduler.heartbeat(hand.worker_id + 1_000, LONG)

    @on_bench
    async def test_suspended_and_finished_runs_do_not_die_with_their_last_worker(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        await bench.start("sleeps", "waits", "done")
        runs = {run.execution_id: run for run in await mortal.claim()}
        wake_at = bench.now() + LONG
        await mortal.record(
            suspend(runs["sleeps"], wake_at), suspend(runs["waits"], on_signal=True), finish(runs["done"])
        )
        before = [await bench.row(execution_id) for execution_id in runs]
        assert await bench.bury(mortal) == 0
        assert [await bench.row(execution_id) for execution_id in runs] == before
        assert await (await bench.hand()).claim() == []

    @on_bench
    async def test_anyone_may_reap_at_any_time(self, bench: Bench) -> None:
        views = await bench.views(2)
        assert [(await view.reap(100)).freed for view in views] == [0, 0]
        mortal = await bench.hand(lease=LAPSE)
        await bench.start(*(f"a-{n}" for n in range(200)))
        assert len(await mortal.claim(limit=200)) == 200
        await bench.pass_time(2 * LAPSE)
        reaped = await asyncio.gather(*(views[n % 2].reap(100) for n in range(6)))
        freed = [answer.freed for answer in reaped]
        assert sum(freed) == 200
        assert len(await (await bench.hand()).claim(limit=300)) == 200

    @on_bench
    async def test_a_reap_tells_when_the_next_lease_of_another_ends(self, bench: Bench) -> None:  # B56
        own = await bench.hand(lease=LAPSE)
        assert (await bench.scheduler.reap(100, own.worker_id)).next_expiry is None
        before = bench.now()
        mortal, _ = await bench.hand(lease=LONG), await bench.hand(lease=2 * LONG)
        expiry = (await bench.scheduler.reap(100, own.worker_id)).next_expiry
        assert expiry is not None
        assert before + LONG <= expiry <= bench.scheduler.clock.latest() + LONG
        mortal.lease = 3 * LONG
        await mortal.heartbeat()
        later = (await bench.scheduler.reap(100, own.worker_id)).next_expiry
        assert later is not None
        assert expiry + LONG <= later <= bench.scheduler.clock.latest() + 2 * LONG
        # The dead have none, whether they are dead already or found to be by this call.
        await bench.pass_time(2 * LAPSE)
        assert (await bench.scheduler.reap(100)).next_expiry == later
        assert (await bench.scheduler.reap(100)).next_expiry == later

    @on_bench
    async def test_a_worker_never_declares_itself_dead(self, bench: Bench) -> None:  # B57
        late, other = await bench.hand(lease=LAPSE), await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", late)
        await bench.running("b", other)
        await bench.pass_time(2 * LAPSE)
        assert (
            await bench.scheduler.reap(100, late.worker_id)
        ).freed == 1  # of the other, whose lease has passed as well
        await late.record(completed(run, "x"))
        late.lease = LONG
        await late.heartbeat()
        assert (await bench.row("a")).worker == late.name
        with raises(LeaseLost):
            await other.heartbeat()

    @on_bench
    async def test_a_release_frees_all_but_what_is_kept(self, bench: Bench) -> None:  # B61
        hand = await bench.hand()
        await bench.start("kept", "unknown-1", "unknown-2", "sleeps")
        runs = {run.execution_id: run for run in await hand.claim()}
        wake_at = bench.now() + LONG
        await hand.record(completed(runs["unknown-1"], "x"), suspend(runs["sleeps"], wake_at))
        assert await hand.release(runs["kept"]) == 2
        assert await hand.release(runs["kept"]) == 0
        stale = await hand.flush(completed(runs["unknown-1"], "late"), completed(runs["kept"], "x"))
        assert stale == Flushed(lost=frozenset((runs["unknown-1"].run_id,)))
        heir = await bench.hand()
        taken = {run.execution_id: run for run in await heir.claim()}
        assert set(taken) == {"unknown-1", "unknown-2"}
        assert all(taken[i].epoch > runs[i].epoch for i in taken)
        assert [row.name for row in taken["unknown-1"].steps] == ["x"]
        assert (await bench.row("sleeps")).wake_at == wake_at

    @on_bench
    async def test_a_worker_that_released_goes_on(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("a")
        assert await hand.release() == 1
        await hand.heartbeat()
        again = await hand.take("a")
        assert again.epoch > run.epoch
        await hand.record(finish(again))

    @on_bench
    async def test_a_release_touches_no_other_worker(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        other = await bench.hand()
        assert await other.release() == 0
        # Nor does keeping what is another's give it to this one.
        assert await other.release(run) == 0
        assert (await other.flush(completed(run, "x"))).lost == {run.run_id}
        await hand.record(finish(run))
        assert await bench.scheduler.release(hand.worker_id + 1_000, []) == 0

    @on_bench
    async def test_deregistering_frees_what_is_held_at_once(self, bench: Bench) -> None:  # B59
        hand = await bench.hand()
        await bench.start("a", "b", "sleeps")
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(completed(runs["a"], "x"), suspend(runs["sleeps"], bench.now() + LONG))
        await hand.deregister()
        heir = await bench.hand()
        taken = {run.execution_id: run for run in await heir.claim()}
        assert set(taken) == {"a", "b"}
        assert taken["a"].epoch > runs["a"].epoch
        assert [row.name for row in taken["a"].steps] == ["x"]
        with raises(LeaseLost):
            await hand.heartbeat()

    @on_bench
    async def test_deregistering_touches_no_other_worker(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        leaver, _ = await bench.running("b")
        await leaver.deregister()
        await hand.heartbeat()
        await hand.record(completed(run, "x"))
        assert await hand.claim_ids() == ["b"]

    @on_bench
    async def test_deregistering_an_unknown_worker_does_nothing(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.deregister(hand.worker_id + 1_000)
        await bench.scheduler.deregister(0)
        await hand.record(finish(run))
        await hand.deregister()
        await hand.deregister()

    @on_bench
    async def test_deregistering_after_death_does_not_disturb_the_heir(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        await bench.bury(mortal)
        heir = await bench.hand()
        run = await heir.take("a")
        await mortal.deregister()
        await heir.record(finish(run))

    @on_bench
    async def test_live_workers_are_counted(self, bench: Bench) -> None:
        assert len((await bench.scheduler.stats()).workers) == 0
        hand, mortal = await bench.hand(), await bench.hand(lease=LAPSE)
        leaver = await bench.hand()
        await leaver.deregister()
        await bench.bury(mortal)
        assert len((await bench.scheduler.stats()).workers) == 1
        await hand.deregister()
        assert len((await bench.scheduler.stats()).workers) == 0
