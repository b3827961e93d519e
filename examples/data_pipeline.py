"""Two ways through a table that is too important to be walked twice: record by record, and in chunks.

Everything here is a plain function: ``zart_step`` makes durable steps of functions, ``zart_durable`` makes tasks. The calls read like
any others, and a step's name is filled from its arguments. The chunked task is also started as a child of a nightly one.

Run it with ``python -m examples.data_pipeline``.
"""

import asyncio

from msgspec import Struct

import zart_core
from examples._database import database
from zart_core import DurableScheduler, TaskRegistry, Worker, zart_durable, zart_step

PENDING = [f"record {n}" for n in range(5)]
"""Stands in for a table."""
CHUNK_SIZE = 2


class Record(Struct, frozen=True):
    id: int
    text: str


class Pipeline(Struct, frozen=True):
    target: str


class Totals(Struct, frozen=True):
    records: int
    chunks: int


# --- record by record -------------------------------------------------------------------------------------------------


@zart_step("fetch-records")
async def fetch_records() -> list[Record]:
    return [Record(n, text) for n, text in enumerate(PENDING)]


@zart_step("transform-record-{index}", retry="exponential(3, 2s)")
async def transform_record(index: int, record: Record) -> str:
    return f"{record.text.upper()} ({record.id})"


@zart_step("write-results", timeout="30s")
def write_results(target: str, outputs: list[str]) -> int:
    print(f"Wrote to {target}: {', '.join(outputs)}")
    return len(outputs)


@zart_durable("data-pipeline")
async def data_pipeline(data: Pipeline) -> int:
    records = await fetch_records()
    outputs: list[str] = []
    for index, record in enumerate(records):
        outputs.append(await transform_record(index, record))
    return await write_results(data.target, outputs)


# --- in chunks --------------------------------------------------------------------------------------------------------


@zart_step("get-total-count")
async def get_total_count() -> int:
    return len(PENDING)


@zart_step("process-chunk-{chunk}")
async def process_chunk(chunk: int) -> int:
    items = PENDING[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]
    print(f"Processed chunk {chunk}: {len(items)} records")
    return len(items)


@zart_durable("chunked-processor", timeout="1h")
async def chunked_processor(data: Pipeline) -> Totals:
    total = await get_total_count()
    chunks = -(-total // CHUNK_SIZE)
    processed = 0
    for chunk in range(chunks):
        processed += await process_chunk(chunk)
    return Totals(processed, chunks)


# --- both -------------------------------------------------------------------------------------------------------------


@zart_durable("nightly")
async def nightly(data: Pipeline) -> str:
    written = await zart_core.run_child("pipeline", data_pipeline, data)
    totals = await zart_core.run_child("chunks", chunked_processor, data)
    # The same step under a name of this call.
    await write_results("the log", [str(written), str(totals.records)]).named("write-log")
    return f"{written} records written, {totals.records} processed in {totals.chunks} chunks"


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    for task in (data_pipeline, chunked_processor, nightly):
        registry.register(task)

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(nightly, Pipeline("the archive"))
        print(await handle.result(timeout="60s"))

        history = await durable.history(handle.execution_id)
        print("Calls:", ", ".join(f"{step.name} ({step.kind})" for step in history.steps))


if __name__ == "__main__":
    asyncio.run(main())
