-- Zart's tables, in a schema of their own. {schema} stands for its name, which has been validated.
-- Times are bigint microseconds since the Unix epoch (UTC), by the server's clock; payloads are bytea nobody here looks
-- into. No foreign keys and no triggers: each costs a row lock or a call for every row of the hot path.

-- A sequence and not an identity: a start gives its runs their numbers in the order of the call, and stores them in the
-- order of their ids.
CREATE SEQUENCE {schema}.run_ids AS bigint;

-- What was started; append-only. An execution is its run with the highest number.
CREATE TABLE {schema}.runs (
    run_id       bigint  PRIMARY KEY,
    parent_run   bigint,
    created_at   bigint  NOT NULL,
    priority     bigint  NOT NULL,
    run          integer NOT NULL,
    execution_id text    COLLATE "C" NOT NULL,
    task         text    COLLATE "C" NOT NULL,
    queue        text    COLLATE "C" NOT NULL,
    tags         jsonb   NOT NULL,                -- an object of texts
    input        bytea   NOT NULL,
    nonce        bigint,                          -- of the call that created it, which may be repeated
    UNIQUE (execution_id, run)
);
ALTER SEQUENCE {schema}.run_ids OWNED BY {schema}.runs.run_id;

-- Runs that took the place of an earlier one: lets counts leave the earlier ones out without walking all runs.
CREATE INDEX runs_again ON {schema}.runs (execution_id, run) WHERE run > 1;
-- Lists of one task.
CREATE INDEX runs_task ON {schema}.runs (task, run_id);

-- The only table whose rows change, and it holds unfinished runs only: vacuum has work in proportion to those. Status is
-- derived: quarantined -> paused; worker_id set -> running; epoch 0 -> scheduled; else waiting.
CREATE TABLE {schema}.active (
    run_id           bigint   PRIMARY KEY,
    wake_at          bigint,                      -- when it may be claimed, never later than its deadline; NULL while leased
    worker_id        bigint,                      -- who leases it
    parent_run       bigint,
    deadline         bigint,
    started_at       bigint,
    bytes            bigint   NOT NULL DEFAULT 0, -- of input, events and results, but for small results: see claim_v1
    priority         bigint   NOT NULL,
    epoch            integer  NOT NULL DEFAULT 0, -- claims so far; with worker_id it fences every write
    signal_seq       integer  NOT NULL DEFAULT 0,
    open_children    integer  NOT NULL DEFAULT 0,
    attempt          integer  NOT NULL DEFAULT 0,
    crashes          integer  NOT NULL DEFAULT 0, -- workers that died with it since its history last grew
    progress         integer  NOT NULL DEFAULT 0, -- rows of history at the last of those deaths
    waits            smallint NOT NULL DEFAULT 0, -- bits, while suspended: 2 a signal wakes it, 4 its last child does
    cancel_requested boolean  NOT NULL DEFAULT false,
    cleanup          boolean  NOT NULL DEFAULT false, -- a cancellation has to run the handler once more
    quarantined      boolean  NOT NULL DEFAULT false,
    queue            text     COLLATE "C" NOT NULL,
    task             text     COLLATE "C" NOT NULL,
    version          text,
    cancel_reason    text,
    error            bytea                        -- why it waits (a retry) or is parked
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- What a claim reads: leased runs are not in it, nor those that wait without a timer; due ones come first.
CREATE INDEX active_ready ON {schema}.active (queue, task, priority DESC, wake_at, run_id)
    WHERE worker_id IS NULL AND wake_at IS NOT NULL;
-- Deadlines that pass while nobody runs the run, for workers whose slots are all taken.
CREATE INDEX active_deadline ON {schema}.active (queue, task, deadline)
    WHERE worker_id IS NULL AND deadline IS NOT NULL;
-- What a dead worker leaves behind.
CREATE INDEX active_worker ON {schema}.active (worker_id) WHERE worker_id IS NOT NULL;

-- How runs ended; append-only, written in the transaction that deletes the active row.
CREATE TABLE {schema}.results (
    run_id      bigint  PRIMARY KEY,
    started_at  bigint,
    finished_at bigint  NOT NULL,
    deadline    bigint,
    attempt     integer NOT NULL,
    status      text    COLLATE "C" NOT NULL,     -- completed, failed, cancelled
    version     text,
    output      bytea,
    error       bytea
);
-- By time: what is old enough to be purged. By run: lists of the few that did not complete.
CREATE INDEX results_ended ON {schema}.results (status, finished_at, run_id);
CREATE INDEX results_bad ON {schema}.results (status, run_id) WHERE status <> 'completed';

-- One row per durable call.
CREATE TABLE {schema}.steps (
    run_id      bigint  NOT NULL,
    started_at  bigint  NOT NULL,
    finished_at bigint,                           -- of a pending row: when its run ended without it
    wake_at     bigint,
    deadline    bigint,
    worker_id   bigint,
    ordinal     integer NOT NULL,
    attempts    integer NOT NULL,
    event_seq   integer,
    name        text    COLLATE "C" NOT NULL,
    kind        text    COLLATE "C" NOT NULL,
    status      text    COLLATE "C" NOT NULL,     -- pending, completed, failed
    output      bytea,
    error       bytea,
    details     bytea,
    PRIMARY KEY (run_id, name, ordinal)
);
-- What live runs wait for.
CREATE INDEX steps_pending ON {schema}.steps (run_id) WHERE status = 'pending' AND finished_at IS NULL;

CREATE TABLE {schema}.attempts (
    run_id      bigint  NOT NULL,
    started_at  bigint  NOT NULL,
    finished_at bigint  NOT NULL,
    worker_id   bigint,
    ordinal     integer NOT NULL,
    attempt     integer NOT NULL,
    -- The handler's attempt during which it was: each of those counts the attempts of its steps from 1 again.
    handler_attempt integer NOT NULL,
    name        text    COLLATE "C" NOT NULL,     -- empty: the handler's own
    error       bytea   NOT NULL,
    PRIMARY KEY (run_id, name, ordinal, handler_attempt, attempt)
);

CREATE TABLE {schema}.events (
    run_id   bigint  NOT NULL,
    sent_at  bigint  NOT NULL,
    seq      integer NOT NULL,
    name     text    COLLATE "C" NOT NULL,
    event_id text    COLLATE "C",
    payload  bytea   NOT NULL,
    PRIMARY KEY (run_id, seq)
);
CREATE UNIQUE INDEX events_once ON {schema}.events (run_id, event_id) WHERE event_id IS NOT NULL;

CREATE TABLE {schema}.published (
    run_id bigint NOT NULL,
    number bigint NOT NULL DEFAULT 0,             -- an earlier value does not come after a later one
    key    text   COLLATE "C" NOT NULL,
    value  bytea  NOT NULL,
    PRIMARY KEY (run_id, key)
);

-- Rows stay after their worker is gone: history shows the names. No index holds what a heartbeat changes, so that
-- heartbeats are heap-only updates.
CREATE TABLE {schema}.workers (
    worker_id     bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    registered_at bigint  NOT NULL,
    expires_at    bigint,                         -- the lease; NULL once declared dead or gone
    turn          integer NOT NULL DEFAULT 0,     -- raised by a release: a claim from before it comes too late
    pid           bigint  NOT NULL,
    emptied       boolean NOT NULL DEFAULT false, -- dead or gone, and holds nothing any more
    name          text    NOT NULL,
    host          text    NOT NULL,
    tasks         text[]  NOT NULL,
    queues        text[]  NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 100);
CREATE INDEX workers_present ON {schema}.workers (worker_id) WHERE NOT emptied;
