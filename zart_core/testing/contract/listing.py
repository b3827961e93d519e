"""Listing: the latest runs that match, newest first, page by page."""

from __future__ import annotations

from msgspec.structs import replace

from zart_core.records import ExecutionRow, ListQuery
from zart_core.testing.contract.bench import Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import finish, pending, suspend


class ListingContract(Contract):
    @on_bench
    async def test_an_empty_store_lists_nothing(self, bench: Bench) -> None:
        assert (await bench.scheduler.list(ListQuery())).rows == []

    @on_bench
    async def test_the_newest_comes_first(self, bench: Bench) -> None:
        await bench.start("b", "c", "a")
        await bench.start("e", "d")
        rows = (await bench.scheduler.list(ListQuery())).rows
        run_ids = [row.run_id for row in rows]
        assert run_ids == sorted(run_ids, reverse=True)
        assert {row.execution_id for row in rows[:2]} == {"d", "e"}
        assert len(rows) == 5

    @on_bench
    async def test_rows_are_those_of_get_without_the_waits(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b", "c", tags={"k": "v"}, priority=3)
        a, b, _ = await hand.claim()
        await hand.record(pending(a, "x"), suspend(a, on_signal=True, error=b"e"), finish(b, output=b"done"))
        await bench.start("d", queue="other")
        for row in (await bench.scheduler.list(ListQuery())).rows:
            expected = await bench.row(row.execution_id)
            assert _without_waits(row) == _without_waits(expected)

    @on_bench
    async def test_never_more_than_the_limit(self, bench: Bench) -> None:
        await bench.start(*(f"a-{n}" for n in range(60)))
        assert len((await bench.scheduler.list(ListQuery())).rows) == 50
        assert len((await bench.scheduler.list(ListQuery(limit=7))).rows) == 7
        assert len((await bench.scheduler.list(ListQuery(limit=100))).rows) == 60

    @on_bench
    async def test_pages_meet_without_gap_or_overlap(self, bench: Bench) -> None:
        await bench.start(*(f"a-{n:02}" for n in range(25)))
        seen: list[str] = []
        before: int | None = None
        while page := (await bench.scheduler.list(ListQuery(limit=4, before=before))).rows:
            seen += [row.execution_id for row in page]
            before = page[-1].run_id
            # What is started meanwhile is newer than every page to come.
            await bench.start(f"new-{before}")
        assert len(seen) == 25
        assert set(seen) == {f"a-{n:02}" for n in range(25)}

    @on_bench
    async def test_pages_keep_to_the_filter(self, bench: Bench) -> None:
        await bench.scheduler.start([new(f"a-{n}", tags={"kind": "odd" if n % 2 else "even"}) for n in range(20)])
        first = (await bench.scheduler.list(ListQuery(tags={"kind": "odd"}, limit=6))).rows
        rest = (await bench.scheduler.list(ListQuery(tags={"kind": "odd"}, limit=6, before=first[-1].run_id))).rows
        assert (len(first), len(rest)) == (6, 4)
        assert {row.execution_id for row in first + rest} == {f"a-{n}" for n in range(1, 20, 2)}

    @on_bench
    async def test_by_status(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("completed", "failed", "running", "waiting")
        runs = {run.execution_id: run for run in await hand.claim()}
        await bench.start("scheduled", "cancelled")
        await bench.scheduler.cancel("cancelled", None)
        await hand.record(
            *(finish(runs["completed"]), finish(runs["failed"], "failed"), suspend(runs["waiting"], on_signal=True))
        )
        for status in ("completed", "failed", "running", "waiting", "scheduled", "cancelled"):
            assert await _ids(bench, ListQuery(statuses=(status,))) == {status}
        assert await _ids(bench, ListQuery(statuses=("failed", "running", "paused"))) == {"failed", "running"}
        assert await _ids(bench, ListQuery(statuses=("paused",))) == set()

    @on_bench
    async def test_by_task(self, bench: Bench) -> None:
        await bench.start("a", "b")
        await bench.start("c", task="t_x")
        await bench.start("d", task="t-x")
        assert await _ids(bench, ListQuery(task="task")) == {"a", "b"}
        assert await _ids(bench, ListQuery(task="t_x")) == {"c"}
        assert await _ids(bench, ListQuery(task="Task")) == set()

    @on_bench
    async def test_by_tags_that_are_all_there(self, bench: Bench) -> None:
        await bench.scheduler.start(
            [
                new("none"),
                new("eu", tags={"region": "eu"}),
                new("eu-gold", tags={"region": "eu", "tier": "gold"}),
                new("us-gold", tags={"region": "us", "tier": "gold"}),
            ]
        )
        assert await _ids(bench, ListQuery(tags={})) == {"none", "eu", "eu-gold", "us-gold"}
        assert await _ids(bench, ListQuery(tags={"region": "eu"})) == {"eu", "eu-gold"}
        assert await _ids(bench, ListQuery(tags={"tier": "gold", "region": "eu"})) == {"eu-gold"}
        assert await _ids(bench, ListQuery(tags={"region": "e"})) == set()
        assert await _ids(bench, ListQuery(tags={"eu": "region"})) == set()
        assert await _ids(bench, ListQuery(tags={"region": "EU"})) == set()

    @on_bench
    async def test_tags_are_taken_literally(self, bench: Bench) -> None:
        odd = ["a.b", "$", "a[0]", 'a"b', "a'b", "a\\b", "%", "_", "", "ключ", "😀", "a b", "null", "1", '"']
        await bench.scheduler.start([new(f"key-{n}", tags={text: "value"}) for n, text in enumerate(odd)])
        await bench.scheduler.start([new(f"value-{n}", tags={"key": text}) for n, text in enumerate(odd)])
        for n, text in enumerate(odd):
            assert (await bench.row(f"key-{n}")).tags == {text: "value"}
            assert await _ids(bench, ListQuery(tags={text: "value"})) == {f"key-{n}"}
            assert await _ids(bench, ListQuery(tags={"key": text})) == {f"value-{n}"}

    @on_bench
    async def test_search_is_a_prefix_taken_literally(self, bench: Bench) -> None:  # B52
        await bench.start("a_b-1", "a_b-2", "a-b-1", "aXb-1", "a%b", "a\\b", "A_b", "b-a_b", "a_", "[a", "a*b", "a?b")
        assert await _ids(bench, ListQuery(search="a_b")) == {"a_b-1", "a_b-2"}
        assert await _ids(bench, ListQuery(search="a_")) == {"a_b-1", "a_b-2", "a_"}
        assert await _ids(bench, ListQuery(search="a%")) == {"a%b"}
        assert await _ids(bench, ListQuery(search="a\\")) == {"a\\b"}
        assert await _ids(bench, ListQuery(search="A")) == {"A_b"}
        assert await _ids(bench, ListQuery(search="[a")) == {"[a"}
        assert await _ids(bench, ListQuery(search="a*")) == {"a*b"}
        assert await _ids(bench, ListQuery(search="a?")) == {"a?b"}
        assert await _ids(bench, ListQuery(search="a_b-1-")) == set()
        assert await _ids(bench, ListQuery(search="%")) == set()
        assert await _ids(bench, ListQuery(search="_")) == set()

    @on_bench
    async def test_search_finds_any_text(self, bench: Bench) -> None:
        ids = ["école-1", "école-2", "日本-1", "😀-1", "z", "\U0010ffff\U0010ffff", "\uffff1", "zz"]
        await bench.start(*ids)
        assert await _ids(bench, ListQuery(search="école")) == {"école-1", "école-2"}
        assert await _ids(bench, ListQuery(search="日")) == {"日本-1"}
        assert await _ids(bench, ListQuery(search="😀")) == {"😀-1"}
        assert await _ids(bench, ListQuery(search="\U0010ffff")) == {"\U0010ffff\U0010ffff"}
        assert await _ids(bench, ListQuery(search="\uffff")) == {"\uffff1"}
        assert await _ids(bench, ListQuery(search="z")) == {"z", "zz"}
        assert await _ids(bench, ListQuery(search="")) == set(ids)

    @on_bench
    async def test_all_conditions_hold_together(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("x-1", "x-2", "y-1", tags={"k": "v"})
        await bench.start("x-3", tags={"k": "w"})
        await bench.start("x-4", task="other", tags={"k": "v"})
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(*(finish(runs[i]) for i in ("x-2", "y-1", "x-3")))
        query = ListQuery(statuses=("completed",), task="task", tags={"k": "v"}, search="x-")
        assert await _ids(bench, query) == {"x-2"}
        assert await _ids(bench, ListQuery(task="task", tags={"k": "v"}, search="x-")) == {"x-1", "x-2"}


async def _ids(bench: Bench, query: ListQuery) -> set[str]:
    rows = (await bench.scheduler.list(query)).rows
    ids = {row.execution_id for row in rows}
    assert len(ids) == len(rows)
    return ids


def _without_waits(row: ExecutionRow) -> ExecutionRow:
    return replace(row, waits=[])
