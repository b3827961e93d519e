-- Zart's tables. They carry a prefix because they share the file with the user's own tables (ctx.transaction writes both).
-- Times are integer microseconds since the Unix epoch (UTC); payloads are blobs nobody here looks into.

-- One row: the latest time that a clock of this file's had shown when a worker came to its end. Together with what those that live have
-- shown (zart_workers.shown_at) it is the time that no process's clock may be behind.
CREATE TABLE zart_clock (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    latest INTEGER NOT NULL
) STRICT;
INSERT INTO zart_clock VALUES (1, 0);

-- What was started; append-only. An execution is its run with the highest number.
-- AUTOINCREMENT: an id that was purged is never given out again, so a write fenced for it can never hit a stranger.
CREATE TABLE zart_runs (
    run_id       INTEGER PRIMARY KEY AUTOINCREMENT,
    execution_id TEXT    NOT NULL,
    run          INTEGER NOT NULL,
    task         TEXT    NOT NULL,
    queue        TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    parent_run   INTEGER,
    created_at   INTEGER NOT NULL,
    tags         TEXT    NOT NULL,             -- a JSON object of texts
    input        BLOB    NOT NULL,
    nonce        INTEGER,                      -- of the call that created it, which may be repeated
    UNIQUE (execution_id, run)
) STRICT;

-- Runs that took the place of an earlier one: lets counts leave the earlier ones out without walking all runs.
CREATE INDEX zart_runs_again ON zart_runs (execution_id, run) WHERE run > 1;
-- Lists of one task.
CREATE INDEX zart_runs_task ON zart_runs (task);

-- The only table whose rows change, and it holds unfinished runs only. Status is derived:
-- quarantined -> paused; worker_id set -> running; epoch 0 -> scheduled; else waiting.
CREATE TABLE zart_active (
    run_id           INTEGER PRIMARY KEY,
    queue            TEXT    NOT NULL,
    task             TEXT    NOT NULL,
    priority         INTEGER NOT NULL,
    wake_at          INTEGER,                  -- when it may be claimed, never later than its deadline; NULL while leased
    worker_id        INTEGER,                  -- who leases it
    epoch            INTEGER NOT NULL DEFAULT 0, -- claims so far; with worker_id it fences every write
    waits            INTEGER NOT NULL DEFAULT 0, -- bits, while suspended: 2 a signal wakes it, 4 its last child does
    signal_seq       INTEGER NOT NULL DEFAULT 0,
    open_children    INTEGER NOT NULL DEFAULT 0,
    parent_run       INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    cancel_reason    TEXT,
    cleanup          INTEGER NOT NULL DEFAULT 0, -- a cancellation has to run the handler once more
    quarantined      INTEGER NOT NULL DEFAULT 0,
    attempt          INTEGER NOT NULL DEFAULT 0,
    crashes          INTEGER NOT NULL DEFAULT 0, -- workers that died with it since its history last grew
    progress         INTEGER NOT NULL DEFAULT 0, -- rows of history at the last of those deaths
    version          TEXT,
    started_at       INTEGER,
    deadline         INTEGER,
    error            BLOB                      -- why it waits (a retry) or is parked
) STRICT;

-- What a claim reads: leased runs are not in it, nor those that wait without a timer; due ones come first.
CREATE INDEX zart_active_ready ON zart_active (queue, task, priority DESC, wake_at, run_id)
    WHERE worker_id IS NULL AND wake_at IS NOT NULL;
-- Deadlines that pass while nobody runs the run, for workers whose slots are all taken.
CREATE INDEX zart_active_deadline ON zart_active (queue, task, deadline)
    WHERE worker_id IS NULL AND wake_at IS NOT NULL AND deadline IS NOT NULL;
-- What a dead worker leaves behind.
CREATE INDEX zart_active_worker ON zart_active (worker_id) WHERE worker_id IS NOT NULL;

-- How runs ended; append-only, written in the transaction that deletes the active row.
CREATE TABLE zart_results (
    run_id      INTEGER PRIMARY KEY,
    status      TEXT    NOT NULL,              -- completed, failed, cancelled
    started_at  INTEGER,
    finished_at INTEGER NOT NULL,
    version     TEXT,
    attempt     INTEGER NOT NULL,
    deadline    INTEGER,
    output      BLOB,
    error       BLOB
) STRICT;

-- By time: what is old enough to be purged. By run: lists of the few that did not complete.
CREATE INDEX zart_results_ended ON zart_results (status, finished_at);
CREATE INDEX zart_results_bad ON zart_results (status) WHERE status <> 'completed';

-- One row per durable call. A rowid table, measured: with 1 KB outputs it takes 2.7 times as many rows per second as
-- WITHOUT ROWID, with tiny and with large ones it is no slower; and rowids keep the order in which calls were recorded.
CREATE TABLE zart_steps (
    run_id      INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    ordinal     INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    status      TEXT    NOT NULL,              -- pending, completed, failed
    attempts    INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER,                       -- of a pending row: when its run ended without it
    wake_at     INTEGER,
    deadline    INTEGER,
    event_seq   INTEGER,
    worker_id   INTEGER,
    output      BLOB,
    error       BLOB,
    details     BLOB,
    PRIMARY KEY (run_id, name, ordinal)
) STRICT;

-- What live runs wait for.
CREATE INDEX zart_steps_pending ON zart_steps (run_id) WHERE status = 'pending' AND finished_at IS NULL;

CREATE TABLE zart_attempts (
    run_id      INTEGER NOT NULL,
    name        TEXT    NOT NULL,              -- empty: the handler's own
    ordinal     INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    worker_id   INTEGER,
    error       BLOB    NOT NULL,
    -- The handler's attempt during which it was: each of those counts the attempts of its steps from 1 again.
    handler_attempt INTEGER NOT NULL,
    PRIMARY KEY (run_id, name, ordinal, handler_attempt, attempt)
) STRICT;

CREATE TABLE zart_events (
    run_id   INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    name     TEXT    NOT NULL,
    event_id TEXT,
    sent_at  INTEGER NOT NULL,
    payload  BLOB    NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT;

CREATE UNIQUE INDEX zart_events_once ON zart_events (run_id, event_id) WHERE event_id IS NOT NULL;

CREATE TABLE zart_published (
    run_id INTEGER NOT NULL,
    key    TEXT    NOT NULL,
    value  BLOB    NOT NULL,
    number INTEGER NOT NULL DEFAULT 0,         -- an earlier value does not come after a later one
    PRIMARY KEY (run_id, key)
) STRICT;

-- Rows stay after their worker is gone: history shows the names. AUTOINCREMENT: an id is never used again.
CREATE TABLE zart_workers (
    worker_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT    NOT NULL,
    host          TEXT    NOT NULL,
    pid           INTEGER NOT NULL,
    tasks         TEXT    NOT NULL,            -- a JSON array of texts
    queues        TEXT    NOT NULL,            -- a JSON array of texts
    registered_at INTEGER NOT NULL,
    expires_at    INTEGER,                     -- the lease; NULL once declared dead or gone
    shown_at      INTEGER                      -- its process's time when it was renewed last; NULL where that was given a clock
) STRICT;

CREATE INDEX zart_workers_live ON zart_workers (expires_at) WHERE expires_at IS NOT NULL;
