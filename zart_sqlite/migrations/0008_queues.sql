-- Queues with limits, and keys.

-- A queue that was ever defined stays: its due runs are in the line, where only those find them who know that.
CREATE TABLE zart_queues (
    name        TEXT    PRIMARY KEY,
    concurrency INTEGER,
    rate        INTEGER,
    period      INTEGER,                       -- microseconds, of the rate
    per_key     INTEGER,
    served      TEXT    NOT NULL DEFAULT ''    -- the key that was served last: the next ones are next
) STRICT, WITHOUT ROWID;

-- First claims of the last period, for queues with a rate.
CREATE TABLE zart_queue_starts (
    queue  TEXT    NOT NULL,
    at     INTEGER NOT NULL,
    starts INTEGER NOT NULL,
    PRIMARY KEY (queue, at)
) STRICT, WITHOUT ROWID;

ALTER TABLE zart_runs ADD COLUMN key TEXT NOT NULL DEFAULT ''; -- empty: none

-- line: the run is due and stands in the line of its queue, 1 for those that never ran, 2 for the others; 0: not (yet).
-- place: the queue whose place the run occupies, as long as a worker has it. It stays when the run is let go, and says nothing then: so
-- whoever frees a run, in whatever way, frees its place, and there is no count that could drift.
ALTER TABLE zart_active ADD COLUMN line INTEGER NOT NULL DEFAULT 0;
ALTER TABLE zart_active ADD COLUMN key TEXT NOT NULL DEFAULT '';
ALTER TABLE zart_active ADD COLUMN place TEXT;
DROP INDEX zart_active_ready;
CREATE INDEX zart_active_ready ON zart_active (queue, task, priority DESC, wake_at, run_id)
    WHERE worker_id IS NULL AND wake_at IS NOT NULL AND line = 0;
CREATE INDEX zart_active_line ON zart_active (queue, line, task, priority DESC, key, wake_at, run_id) WHERE line <> 0;
CREATE INDEX zart_active_place ON zart_active (place, key) WHERE worker_id IS NOT NULL AND place IS NOT NULL;

-- The latest execution that was started as the only one of its task and key ('singleton'), or debounced ('debounce'). Whether it still
-- stands for the key is looked up in zart_active: so nothing that ends or begins it has to know of this row.
CREATE TABLE zart_keyed_starts (
    task         TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    mode         TEXT    NOT NULL,
    execution_id TEXT    NOT NULL,
    first_at     INTEGER NOT NULL,
    nonce        INTEGER,                      -- of the last call that it answered
    PRIMARY KEY (task, key, mode)
) STRICT, WITHOUT ROWID;
CREATE INDEX zart_keyed_starts_execution ON zart_keyed_starts (execution_id);
