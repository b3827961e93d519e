-- Queues with limits, and keys.
--
-- Whoever needs several locks takes them in this order: its worker, rows of `queues` by name, rows of `active`. The last are
-- never waited for while a queue is locked. Nobody else locks a queue: what gives a place back has nothing to do with it.

-- A queue that was ever defined stays: its due runs are in the line, where only those find them who know that.
CREATE TABLE {schema}.queues (
    period      bigint,                           -- microseconds, of the rate
    concurrency integer,
    rate        integer,
    per_key     integer,
    name        text COLLATE "C" PRIMARY KEY,
    served      text COLLATE "C" NOT NULL DEFAULT '' -- the key that was served last: the next ones are next
) WITH (fillfactor = 50);

-- First claims of the last period, for queues with a rate.
CREATE TABLE {schema}.queue_starts (
    at     bigint  NOT NULL,
    starts integer NOT NULL,
    queue  text    COLLATE "C" NOT NULL,
    PRIMARY KEY (queue, at)
);

ALTER TABLE {schema}.runs ADD COLUMN key text COLLATE "C" NOT NULL DEFAULT ''; -- empty: none

-- line: the run is due and stands in the line of its queue, 1 for those that never ran, 2 for the others; 0: not (yet).
-- place: the queue whose place the run occupies, as long as a worker has it. It stays when the run is let go, and says nothing then: so
-- whoever frees a run, in whatever way, frees its place, and there is no count that could drift.
ALTER TABLE {schema}.active
    ADD COLUMN line smallint NOT NULL DEFAULT 0,
    ADD COLUMN key text COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN place text COLLATE "C";
DROP INDEX {schema}.active_ready;
CREATE INDEX active_ready ON {schema}.active (queue, task, priority DESC, wake_at, run_id)
    WHERE worker_id IS NULL AND wake_at IS NOT NULL AND line = 0;
CREATE INDEX active_line ON {schema}.active (queue, line, task, priority DESC, key, wake_at, run_id) WHERE line > 0;
CREATE INDEX active_place ON {schema}.active (place, key) WHERE worker_id IS NOT NULL AND place IS NOT NULL;

-- Stores definitions. What is running when a queue is defined for the first time occupies its places from then on, but for what
-- somebody has locked just then.
CREATE FUNCTION {schema}.define_queues_v1(
    p_names text[], p_concurrency integer[], p_rates integer[], p_periods bigint[], p_per_key integer[])
RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_new text[];
BEGIN
    SELECT array_agg(n.name) INTO v_new
    FROM unnest(p_names) AS n(name) WHERE NOT EXISTS (SELECT 1 FROM {schema}.queues AS q WHERE q.name = n.name);
    INSERT INTO {schema}.queues AS q (name, concurrency, rate, period, per_key)
    SELECT n.* FROM unnest(p_names, p_concurrency, p_rates, p_periods, p_per_key) AS n(name, concurrency, rate, period, per_key)
    ORDER BY n.name COLLATE "C"
    ON CONFLICT (name) DO UPDATE SET
        concurrency = excluded.concurrency, rate = excluded.rate, period = excluded.period, per_key = excluded.per_key
    WHERE (q.concurrency, q.rate, q.period, q.per_key)
        IS DISTINCT FROM (excluded.concurrency, excluded.rate, excluded.period, excluded.per_key);
    IF v_new IS NOT NULL THEN
        UPDATE {schema}.active AS a SET place = a.queue
        FROM (
            SELECT x.run_id FROM {schema}.active AS x JOIN {schema}.runs AS r ON r.run_id = x.run_id
            WHERE x.worker_id IS NOT NULL AND x.queue = ANY (v_new) AND x.place IS NULL AND r.run > 0
            ORDER BY x.run_id FOR NO KEY UPDATE OF x SKIP LOCKED
        ) AS held
        WHERE a.run_id = held.run_id;
    END IF;
END $$;

-- Keys that have runs of one of the tasks in the line of a queue at one priority, from p_from on, up to p_upto: until p_need of them have
-- room. Each step seeks the next key, task by task: so neither the length of a key's own line nor what stands there of other tasks costs
-- anything. A key without room is passed over; these are no more than there are runs in work. p_met: keys of which runs are to be
-- taken already, once for each. p_past: keys that have been looked at.
CREATE FUNCTION {schema}.walk_line_v1(
    p_queue text, p_line integer, p_priority bigint, p_from text, p_upto text, p_per_key integer, p_tasks text[],
    p_need integer, p_met text[], p_past text[], OUT o_keys text[], OUT o_rooms integer[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    WITH RECURSIVE walk AS (
        SELECT n.key, r.room, (r.room > 0)::integer AS found, 1 AS steps
        FROM (
            SELECT s.key FROM unnest(p_tasks) AS t(task)
            CROSS JOIN LATERAL (
                SELECT a.key FROM {schema}.active AS a
                WHERE a.line > 0 AND a.queue = p_queue AND a.line = p_line AND a.task = t.task AND a.priority = p_priority
                  AND a.key >= p_from
                ORDER BY a.key LIMIT 1
            ) AS s
            ORDER BY s.key LIMIT 1
        ) AS n
        CROSS JOIN LATERAL (
            SELECT CASE WHEN p_past <> '{}' AND n.key = ANY (p_past) THEN 0
                        WHEN p_per_key IS NULL OR n.key = '' THEN p_need ELSE p_per_key - (
                SELECT count(*) FROM {schema}.active AS a
                WHERE a.worker_id IS NOT NULL AND a.place IS NOT NULL AND a.place = p_queue AND a.key = n.key
            )::integer - coalesce(cardinality(array_positions(p_met, n.key COLLATE "C")), 0) END AS room OFFSET 0
        ) AS r
        WHERE p_upto IS NULL OR n.key <= p_upto
        UNION ALL
        SELECT n.key, r.room, w.found + (r.room > 0)::integer, w.steps + 1
        FROM walk AS w
        CROSS JOIN LATERAL (
            SELECT s.key FROM unnest(p_tasks) AS t(task)
            CROSS JOIN LATERAL (
                SELECT a.key FROM {schema}.active AS a
                WHERE a.line > 0 AND a.queue = p_queue AND a.line = p_line AND a.task = t.task AND a.priority = p_priority
                  AND a.key > w.key
                ORDER BY a.key LIMIT 1
            ) AS s
            ORDER BY s.key LIMIT 1
        ) AS n
        CROSS JOIN LATERAL (
            SELECT CASE WHEN p_past <> '{}' AND n.key = ANY (p_past) THEN 0
                        WHEN p_per_key IS NULL OR n.key = '' THEN p_need ELSE p_per_key - (
                SELECT count(*) FROM {schema}.active AS a
                WHERE a.worker_id IS NOT NULL AND a.place IS NOT NULL AND a.place = p_queue AND a.key = n.key
            )::integer - coalesce(cardinality(array_positions(p_met, n.key COLLATE "C")), 0) END AS room OFFSET 0
        ) AS r
        WHERE w.found < p_need AND (p_upto IS NULL OR n.key <= p_upto)
    )
    SELECT coalesce(array_agg(w.key ORDER BY w.steps) FILTER (WHERE w.room > 0), '{}'),
           coalesce(array_agg(w.room ORDER BY w.steps) FILTER (WHERE w.room > 0), '{}')
      INTO o_keys, o_rooms FROM walk AS w;
END $$;

-- Up to p_need runs of the line of a queue: higher priority first; at one priority keys take turns, from the one after p_served on. They are
-- locked: what somebody else has locked, a user whose transaction may be open for long, is passed over, and keeps none behind it waiting.
CREATE FUNCTION {schema}.pick_line_v1(
    p_queue text, p_line integer, p_served text, p_per_key integer, p_tasks text[], p_need integer, p_met text[],
    OUT o_runs bigint[], OUT o_offers integer[], OUT o_priorities bigint[], OUT o_keys text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_priority bigint;
    v_left integer := p_need;
    v_keys text[]; v_rooms integer[]; v_more record;
    v_past text[] := '{}';         -- keys that were looked at, at this priority
    v_each integer; v_wanted integer;
    v_picked record;
BEGIN
    o_runs := '{}'; o_offers := '{}'; o_priorities := '{}'; o_keys := '{}';
    SELECT max(l.priority) INTO v_priority
    FROM unnest(p_tasks) AS t(task)
    CROSS JOIN LATERAL (
        SELECT a.priority FROM {schema}.active AS a
        WHERE a.line > 0 AND a.queue = p_queue AND a.line = p_line AND a.task = t.task ORDER BY a.priority DESC LIMIT 1
    ) AS l;
    WHILE v_priority IS NOT NULL AND v_left > 0 LOOP
        -- The first text after the key served last, to the end; then from the beginning to that key. Some more than there is room for: a
        -- user's transaction may have locked all runs of a key, for long.
        SELECT w.o_keys, w.o_rooms INTO v_keys, v_rooms FROM {schema}.walk_line_v1(
            p_queue, p_line, v_priority, p_served || chr(1), NULL, p_per_key, p_tasks, v_left, p_met || o_keys, v_past) AS w;
        IF cardinality(v_keys) < v_left THEN
            v_more := {schema}.walk_line_v1(
                p_queue, p_line, v_priority, '', p_served, p_per_key, p_tasks, v_left - cardinality(v_keys), p_met || o_keys, v_past);
            v_keys := v_keys || v_more.o_keys;
            v_rooms := v_rooms || v_more.o_rooms;
        END IF;
        v_wanted := v_left;
        IF v_keys <> '{}' THEN
            v_each := (2 * v_left - 1) / cardinality(v_keys) + 1;
            SELECT array_agg(p.run_id ORDER BY p.round, p.place) AS runs, array_agg(p.offer ORDER BY p.round, p.place) AS offers,
                   array_agg(p.key ORDER BY p.round, p.place) AS keys
              INTO v_picked
              FROM (
                SELECT c.run_id, c.offer, k.key, k.place,
                       row_number() OVER (PARTITION BY k.place ORDER BY c.wake_at, c.run_id) AS round
                FROM unnest(v_keys, v_rooms) WITH ORDINALITY AS k(key, room, place)
                CROSS JOIN LATERAL (
                    SELECT x.run_id, x.wake_at, t.offer::integer AS offer
                    FROM unnest(p_tasks) WITH ORDINALITY AS t(task, offer)
                    CROSS JOIN LATERAL (
                        SELECT a.run_id, a.wake_at FROM {schema}.active AS a
                        WHERE a.line > 0 AND a.queue = p_queue AND a.line = p_line AND a.priority = v_priority
                          AND a.key = k.key AND a.task = t.task
                        ORDER BY a.wake_at, a.run_id LIMIT least(k.room, v_each)
                        FOR NO KEY UPDATE SKIP LOCKED
                    ) AS x
                    ORDER BY x.wake_at, x.run_id LIMIT least(k.room, v_each)
                ) AS c
                ORDER BY round, k.place LIMIT v_left
            ) AS p;
            o_runs := o_runs || v_picked.runs;
            o_offers := o_offers || v_picked.offers;
            o_keys := o_keys || v_picked.keys;
            o_priorities := o_priorities || array_fill(v_priority, ARRAY[coalesce(cardinality(v_picked.runs), 0)]);
            v_left := v_left - coalesce(cardinality(v_picked.runs), 0);
        END IF;
        IF v_left > 0 AND cardinality(v_keys) = v_wanted THEN
            -- Each of these keys has room for one, and some of their runs are locked: others may follow.
            v_past := v_past || v_keys;
            CONTINUE;
        END IF;
        v_past := '{}';
        SELECT max(l.priority) INTO v_priority
        FROM unnest(p_tasks) AS t(task)
        CROSS JOIN LATERAL (
            SELECT a.priority FROM {schema}.active AS a
            WHERE a.line > 0 AND a.queue = p_queue AND a.line = p_line AND a.task = t.task AND a.priority < v_priority
            ORDER BY a.priority DESC LIMIT 1
        ) AS l;
    END LOOP;
END $$;

-- What a claim may take of queues with limits, which it has locked: so of two claims the second finds the places that the first has taken, and
-- nothing but such a claim takes any. Nothing is leased here. o_ranks: of the runs of one queue in their order. o_parts: parts
-- that are due; they belong to executions that have a place or need none. o_next: when to ask again.
CREATE FUNCTION {schema}.pick_limited_v1(
    p_queues text[], p_tasks text[], p_timeouts bigint[], p_limit integer, p_now bigint, p_forever bigint,
    OUT o_runs bigint[], OUT o_offers integer[], OUT o_priorities bigint[], OUT o_ranks integer[], OUT o_places text[],
    OUT o_parts bigint[], OUT o_part_offers integer[], OUT o_next bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = off SET enable_hashjoin = on
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_queue record;
    v_tasks text[]; v_offers integer[]; v_priorities bigint[];
    v_next bigint;
    v_due bigint[]; v_due_offers integer[]; v_parts bigint[];
    v_lined bigint[]; v_served bigint[];   -- what this claim has put into the line, and what it takes out of it
    v_room integer; v_fresh integer; v_first integer; v_second integer;
    v_again record; v_new record;
BEGIN
    o_runs := '{}'; o_offers := '{}'; o_priorities := '{}'; o_ranks := '{}'; o_places := '{}'; o_parts := '{}'; o_part_offers := '{}';
    FOR v_queue IN SELECT q.* FROM {schema}.queues AS q WHERE q.name = ANY (p_queues) ORDER BY q.name LOOP
        v_lined := '{}';
        -- What has become due goes into the line, each run once: there it is found by its key. A thousand at a time.
        WITH RECURSIVE level AS (
            SELECT t.task, t.offer::integer AS offer, l.priority
            FROM unnest(p_tasks) WITH ORDINALITY AS t(task, offer)
            CROSS JOIN LATERAL (
                SELECT a.priority FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = v_queue.name AND a.task = t.task
                ORDER BY a.priority DESC LIMIT 1
            ) AS l
            UNION ALL
            SELECT level.task, level.offer, l.priority
            FROM level
            CROSS JOIN LATERAL (
                SELECT a.priority FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = v_queue.name
                  AND a.task = level.task AND a.priority < level.priority
                ORDER BY a.priority DESC LIMIT 1
            ) AS l
        )
        SELECT array_agg(level.task), array_agg(level.offer), array_agg(level.priority)
          INTO v_tasks, v_offers, v_priorities FROM level;
        IF v_tasks IS NOT NULL THEN
            SELECT min(n.wake_at) INTO v_next
            FROM unnest(v_tasks, v_priorities) AS level(task, priority)
            CROSS JOIN LATERAL (
                SELECT a.wake_at FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = v_queue.name AND a.task = level.task
                  AND a.priority = level.priority AND a.wake_at > p_now
                ORDER BY a.wake_at LIMIT 1
            ) AS n;
            o_next := least(o_next, v_next);
            SELECT array_agg(d.run_id), array_agg(d.offer) INTO v_due, v_due_offers
            FROM (
                SELECT c.run_id, level.offer
                FROM unnest(v_tasks, v_offers, v_priorities) AS level(task, offer, priority)
                CROSS JOIN LATERAL (
                    SELECT a.run_id FROM {schema}.active AS a
                    WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = v_queue.name AND a.task = level.task
                      AND a.priority = level.priority AND a.wake_at <= p_now
                    ORDER BY a.wake_at, a.run_id LIMIT 1000
                    FOR NO KEY UPDATE SKIP LOCKED
                ) AS c
                LIMIT 1000
            ) AS d;
            IF v_due IS NOT NULL THEN
                SELECT array_agg(r.run_id) INTO v_parts FROM {schema}.runs AS r WHERE r.run_id = ANY (v_due) AND r.run < 0;
                IF v_parts IS NOT NULL THEN
                    SELECT o_parts || array_agg(d.run_id ORDER BY d.place), o_part_offers || array_agg(d.offer ORDER BY d.place)
                      INTO o_parts, o_part_offers
                      FROM unnest(v_due, v_due_offers) WITH ORDINALITY AS d(run_id, offer, place)
                     WHERE d.run_id IN (SELECT unnest(v_parts));
                END IF;
                -- With the deadline that its first claim would give it: it may pass before there is a place.
                WITH lined AS (
                    UPDATE {schema}.active AS a SET
                        line = CASE a.epoch WHEN 0 THEN 1 ELSE 2 END,
                        deadline = CASE WHEN a.epoch = 0 AND a.deadline IS NULL AND p_timeouts[d.offer] IS NOT NULL
                                        THEN least(a.wake_at + p_timeouts[d.offer], p_forever) ELSE a.deadline END
                    FROM unnest(v_due, v_due_offers) AS d(run_id, offer)
                    WHERE a.run_id = d.run_id AND a.run_id = ANY (v_due)
                      AND (v_parts IS NULL OR a.run_id NOT IN (SELECT unnest(v_parts)))
                    RETURNING a.run_id
                )
                SELECT coalesce(array_agg(l.run_id), '{}') INTO v_lined FROM lined AS l;
                IF cardinality(v_due) = 1000 THEN
                    o_next := p_now;
                END IF;
            END IF;
        END IF;

        v_room := p_limit;
        IF v_queue.concurrency IS NOT NULL THEN
            v_room := least(v_room, v_queue.concurrency - (
                SELECT count(*) FROM {schema}.active AS a
                WHERE a.worker_id IS NOT NULL AND a.place IS NOT NULL AND a.place = v_queue.name)::integer);
        END IF;
        IF v_room <= 0 THEN
            IF v_lined <> '{}' THEN
                o_next := p_now;     -- once more, after the commit: see the race at awaited_v1
            END IF;
            CONTINUE;
        END IF;
        v_again := {schema}.pick_line_v1(v_queue.name, 2, v_queue.served, v_queue.per_key, p_tasks, v_room, '{}');
        v_first := cardinality(v_again.o_runs);
        v_served := v_again.o_runs;
        v_room := v_room - v_first;
        v_fresh := v_room;
        IF v_queue.rate IS NOT NULL THEN
            DELETE FROM {schema}.queue_starts AS s WHERE s.queue = v_queue.name AND s.at <= p_now - v_queue.period;
            v_fresh := least(v_fresh, v_queue.rate - (
                SELECT coalesce(sum(s.starts), 0) FROM {schema}.queue_starts AS s WHERE s.queue = v_queue.name)::integer);
        END IF;
        v_second := 0;
        IF v_fresh > 0 THEN
            v_new := {schema}.pick_line_v1(
                v_queue.name, 1, v_queue.served, v_queue.per_key, p_tasks, v_fresh, v_again.o_keys);
            v_second := cardinality(v_new.o_runs);
            v_served := v_served || v_new.o_runs;
        END IF;
        IF v_queue.rate IS NOT NULL AND v_second >= v_fresh AND v_room > v_second AND EXISTS (
            SELECT 1 FROM {schema}.active AS a
            WHERE a.line > 0 AND a.queue = v_queue.name AND a.line = 1
        ) THEN
            -- It is the rate that keeps the next one back: until the oldest start of the period is no more in it.
            o_next := least(o_next, v_queue.period + coalesce(
                (SELECT min(s.at) FROM {schema}.queue_starts AS s WHERE s.queue = v_queue.name), p_now));
        END IF;
        IF v_lined <> '{}' AND (v_queue.concurrency IS NOT NULL OR v_queue.per_key IS NOT NULL)
           AND NOT v_lined <@ v_served THEN
            o_next := p_now;         -- likewise
        END IF;
        IF v_first > 0 THEN
            o_runs := o_runs || v_again.o_runs; o_offers := o_offers || v_again.o_offers;
            o_priorities := o_priorities || v_again.o_priorities;
        END IF;
        IF v_second > 0 THEN
            o_runs := o_runs || v_new.o_runs; o_offers := o_offers || v_new.o_offers;
            o_priorities := o_priorities || v_new.o_priorities;
        END IF;
        IF v_first + v_second > 0 THEN
            o_ranks := o_ranks || ARRAY(SELECT generate_series(1, v_first + v_second));
            o_places := o_places || array_fill(v_queue.name, ARRAY[v_first + v_second]);
        END IF;
    END LOOP;
END $$;

-- After the lease: whom the queues have served, and what of it began.
CREATE FUNCTION {schema}.served_v1(p_runs bigint[], p_now bigint) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- All of them are added up by every claim, so of a long period, more than ten minutes, there are ten thousand at most: those of one part
    -- of it count as of its end.
    INSERT INTO {schema}.queue_starts AS s (queue, at, starts)
    SELECT q.name, CASE WHEN q.period > 600000000 THEN (p_now / (q.period / 10000) + 1) * (q.period / 10000) ELSE p_now END, n.starts
    FROM (
        SELECT a.place, count(*)::integer AS starts FROM {schema}.active AS a
        WHERE a.run_id = ANY (p_runs) AND a.epoch = 1 GROUP BY a.place
    ) AS n
    JOIN {schema}.queues AS q ON q.name = n.place AND q.rate IS NOT NULL
    ON CONFLICT (queue, at) DO UPDATE SET starts = s.starts + excluded.starts;
    UPDATE {schema}.queues AS q SET served = last.key
    FROM (
        SELECT DISTINCT ON (a.place) a.place, a.key
        FROM unnest(p_runs) WITH ORDINALITY AS t(run_id, place)
        JOIN {schema}.active AS a ON a.run_id = t.run_id AND a.run_id = ANY (p_runs)
        WHERE a.place IS NOT NULL ORDER BY a.place, t.place DESC
    ) AS last
    WHERE q.name = last.place AND q.served <> last.key;
END $$;

-- Whether others wait in the line of one of these queues.
--
-- Race: a place becomes free while a claim puts a run into the line. Each sees what was before the other's commit: the claim a place that is
-- taken, and the transaction that gives it back a line in which nobody stands. Each of them looks again after its commit, and one of them
-- must find the other: the claim by o_next of pick_limited_v1; whoever gives back by asking this once more, see vacancies.py. What is
-- true already when it is given back needs no second look.
CREATE FUNCTION {schema}.awaited_v1(p_places text[]) RETURNS boolean LANGUAGE sql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
    SELECT EXISTS (
        SELECT 1 FROM unnest(p_places) AS p(queue)
        CROSS JOIN LATERAL (SELECT 1 FROM {schema}.active AS a WHERE a.line > 0 AND a.queue = p.queue LIMIT 1) AS x)
$$;

-- --- starts by key ---------------------------------------------------------------------------------------------------

-- The latest execution that was started as the only one of its task and key (mode 1), or debounced (mode 2). Whether it still stands for
-- the key is looked up in `active`: so nothing that ends or begins it has to know of this row.
CREATE TABLE {schema}.keyed_starts (
    first_at     bigint   NOT NULL,
    nonce        bigint,                          -- of the last call that it answered
    mode         smallint NOT NULL,
    task         text     COLLATE "C" NOT NULL,
    key          text     COLLATE "C" NOT NULL,
    execution_id text     COLLATE "C" NOT NULL,
    PRIMARY KEY (task, key, mode)
);
CREATE INDEX keyed_starts_execution ON {schema}.keyed_starts (execution_id);

-- start_v1 for calls of which some are by key: p_modes, and p_longest for how long a debounced one may be put off since its first start. Its
-- delay is how long it waits for the next. An answer names the id that was given, and the execution that stands for it.
--
-- Races. Two starts of a key: the first locks its row, or inserts it, and the second waits for it to commit. A start and the end of the live
-- one: the row of `active` is there or not; if it goes right after it was seen, the start was before the end. A debounced start and the
-- claim: both lock the row of `active`, the claim passes over what is locked; so either the claim finds the new input and the new time, or the
-- start finds that it has begun, and another execution is started.
CREATE FUNCTION {schema}.start_keyed_v1(
    p_execution_ids text[], p_tasks text[], p_inputs bytea[], p_versions text[], p_queues text[], p_priorities bigint[],
    p_tags text[], p_wake_at bigint[], p_delays bigint[], p_timeouts bigint[], p_deadlines bigint[], p_nonces bigint[],
    p_forever bigint, p_keys text[], p_modes smallint[], p_longest bigint[])
RETURNS TABLE (given text, execution_id text, run_id bigint, created boolean, now bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint;
    v_one record; v_row record;
    v_run bigint;
    v_fresh integer[] := '{}';                       -- places of what is to be stored
    v_ids text[];                                    -- and their ids
    v_given text[] := '{}'; v_joined text[] := '{}'; -- ids that were given, and the executions that stand for them
BEGIN
    FOR v_one IN
        SELECT u.* FROM unnest(p_execution_ids, p_tasks, p_inputs, p_delays, p_timeouts, p_nonces, p_keys, p_modes, p_longest)
            WITH ORDINALITY AS u(execution_id, task, input, delay, timeout, nonce, key, mode, longest, place)
        ORDER BY u.task COLLATE "C", u.key COLLATE "C", u.place
    LOOP
        -- What is there under its own id is answered as ever; it may be from an earlier try of this call.
        IF v_one.mode IS NULL OR EXISTS (SELECT 1 FROM {schema}.runs AS r WHERE r.execution_id = v_one.execution_id) THEN
            v_fresh := v_fresh || v_one.place::integer;
            CONTINUE;
        END IF;
        LOOP
            v_now := {schema}.now_v1();
            INSERT INTO {schema}.keyed_starts AS k (first_at, nonce, mode, task, key, execution_id)
            VALUES (v_now, v_one.nonce, v_one.mode, v_one.task, v_one.key, v_one.execution_id)
            ON CONFLICT (task, key, mode) DO NOTHING;
            IF FOUND THEN
                v_fresh := v_fresh || v_one.place::integer;
                EXIT;
            END IF;
            SELECT k.* INTO v_row FROM {schema}.keyed_starts AS k
            WHERE k.task = v_one.task AND k.key = v_one.key AND k.mode = v_one.mode FOR UPDATE;
            CONTINUE WHEN NOT FOUND;                 -- purged in between
            v_now := {schema}.now_v1();
            v_run := array_position(p_execution_ids, v_row.execution_id);
            IF v_run = ANY (v_fresh) THEN            -- the same key before in this call
                IF v_one.mode = 2 THEN
                    p_inputs[v_run] := v_one.input;
                END IF;
            ELSIF v_one.nonce IS NULL OR v_row.nonce IS DISTINCT FROM v_one.nonce THEN
                SELECT a.run_id INTO v_run
                FROM (
                    SELECT r.run_id, r.run FROM {schema}.runs AS r
                    WHERE r.execution_id = v_row.execution_id ORDER BY r.run DESC LIMIT 1
                ) AS l
                JOIN {schema}.active AS a ON a.run_id = l.run_id
                -- A restart has begun, whether it has run or not: what it is given is the operator's.
                WHERE v_one.mode = 1 OR l.run = 1;
                IF v_run IS NOT NULL AND v_one.mode = 2 THEN
                    UPDATE {schema}.active AS a SET
                        wake_at = w.at, line = 0,
                        deadline = CASE WHEN v_one.timeout IS NOT NULL THEN least(w.at + v_one.timeout, p_forever) END,
                        bytes = a.bytes + octet_length(v_one.input)
                            - (SELECT octet_length(r.input) FROM {schema}.runs AS r WHERE r.run_id = v_run)
                    FROM (
                        SELECT greatest(0, least(v_now + v_one.delay, v_row.first_at + v_one.longest, p_forever)) AS at
                    ) AS w
                    WHERE a.run_id = v_run AND a.epoch = 0 AND a.worker_id IS NULL;
                    IF FOUND THEN
                        UPDATE {schema}.runs AS r SET input = v_one.input WHERE r.run_id = v_run;
                        UPDATE {schema}.keyed_starts AS k SET nonce = v_one.nonce
                        WHERE k.task = v_one.task AND k.key = v_one.key AND k.mode = v_one.mode;
                    ELSE
                        v_run := NULL;
                    END IF;
                END IF;
                IF v_run IS NULL THEN
                    UPDATE {schema}.keyed_starts AS k SET
                        first_at = v_now, nonce = v_one.nonce, execution_id = v_one.execution_id
                    WHERE k.task = v_one.task AND k.key = v_one.key AND k.mode = v_one.mode;
                    v_fresh := v_fresh || v_one.place::integer;
                    EXIT;
                END IF;
            END IF;
            v_given := v_given || v_one.execution_id;
            v_joined := v_joined || v_row.execution_id;
            EXIT;
        END LOOP;
    END LOOP;
    SELECT array_agg(f.place ORDER BY f.place) INTO v_fresh FROM unnest(v_fresh) AS f(place);
    IF v_fresh IS NOT NULL THEN
        v_ids := ARRAY(SELECT p_execution_ids[f] FROM unnest(v_fresh) AS f);
        RETURN QUERY
        SELECT x.id, x.id, x.run_id, s.created, s.now
        FROM {schema}.start_v1(
            v_ids, ARRAY(SELECT p_tasks[f] FROM unnest(v_fresh) AS f),
            ARRAY(SELECT p_inputs[f] FROM unnest(v_fresh) AS f), ARRAY(SELECT p_versions[f] FROM unnest(v_fresh) AS f),
            ARRAY(SELECT p_queues[f] FROM unnest(v_fresh) AS f), ARRAY(SELECT p_priorities[f] FROM unnest(v_fresh) AS f),
            ARRAY(SELECT p_tags[f] FROM unnest(v_fresh) AS f), ARRAY(SELECT p_wake_at[f] FROM unnest(v_fresh) AS f),
            ARRAY(SELECT p_delays[f] FROM unnest(v_fresh) AS f), ARRAY(SELECT p_timeouts[f] FROM unnest(v_fresh) AS f),
            ARRAY(SELECT p_deadlines[f] FROM unnest(v_fresh) AS f), ARRAY(SELECT p_nonces[f] FROM unnest(v_fresh) AS f),
            p_forever, ARRAY(SELECT p_keys[f] FROM unnest(v_fresh) AS f)) AS s
        CROSS JOIN LATERAL unnest(
            CASE WHEN s.runs IS NULL THEN ARRAY[s.execution_id] ELSE v_ids END, coalesce(s.runs, ARRAY[s.run_id])) AS x(id, run_id);
    END IF;
    RETURN QUERY
    SELECT j.given, j.joined, l.run_id, false, {schema}.now_v1()
    FROM unnest(v_given, v_joined) AS j(given, joined)
    CROSS JOIN LATERAL (
        SELECT r.run_id FROM {schema}.runs AS r WHERE r.execution_id = j.joined ORDER BY r.run DESC LIMIT 1
    ) AS l;
END $$;

-- What a worker without work asks at its poll, of which nearly all answers are that there is none: whether a claim would find anything, and
-- what comes next. It locks and changes nothing, but for the worker's own lease where p_lease says so. What stands in a line counts as due:
-- only a claim can tell whether there is a place. o_sweep: the dead have not been emptied, or counts are to be folded.
CREATE FUNCTION {schema}.look_v1(
    p_worker bigint, p_lease bigint, p_queues text[], p_tasks text[], p_forever bigint,
    OUT o_now bigint, OUT o_alive boolean, OUT o_next_wake bigint, OUT o_next_expiry bigint, OUT o_next_tick bigint,
    OUT o_sweep boolean)
LANGUAGE plpgsql
-- Nested loops: all that is joined are the levels, of which there are a few, and what is looked up for each.
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_tasks text[] := p_tasks;
BEGIN
    IF p_lease IS NULL THEN
        o_alive := EXISTS (SELECT 1 FROM {schema}.workers AS w WHERE w.worker_id = p_worker AND w.expires_at IS NOT NULL);
    ELSE
        UPDATE {schema}.workers AS w SET expires_at = least({schema}.now_v1() + p_lease, p_forever)
        WHERE w.worker_id = p_worker AND w.expires_at IS NOT NULL;
        o_alive := FOUND;
    END IF;
    o_now := {schema}.now_v1();
    IF NOT o_alive THEN RETURN; END IF;
    IF EXISTS (SELECT 1 FROM {schema}.pauses) THEN
        v_tasks := ARRAY(
            SELECT t.task FROM unnest(p_tasks) AS t(task)
            WHERE NOT EXISTS (
                SELECT 1 FROM {schema}.pauses AS p WHERE p.task = t.task AND p.execution_id IS NULL AND p.step IS NULL));
        SELECT min(p.expires_at) INTO o_next_wake FROM {schema}.pauses AS p WHERE p.expires_at IS NOT NULL;
    END IF;
    -- As in claim_v1.
    WITH RECURSIVE level AS (
        SELECT q.queue, t.task, l.priority
        FROM unnest(p_queues) AS q(queue)
        CROSS JOIN unnest(v_tasks) AS t(task)
        CROSS JOIN LATERAL (
            SELECT a.priority FROM {schema}.active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = q.queue AND a.task = t.task
            ORDER BY a.priority DESC LIMIT 1
        ) AS l
        UNION ALL
        SELECT level.queue, level.task, l.priority
        FROM level
        CROSS JOIN LATERAL (
            SELECT a.priority FROM {schema}.active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC LIMIT 1
        ) AS l
    )
    SELECT least(o_next_wake, min(n.wake_at)) INTO o_next_wake
    FROM level
    CROSS JOIN LATERAL (
        SELECT a.wake_at FROM {schema}.active AS a
        WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
          AND a.priority = level.priority
        ORDER BY a.wake_at LIMIT 1
    ) AS n;
    IF EXISTS (SELECT 1 FROM {schema}.queues) AND EXISTS (
        SELECT 1
        FROM unnest(p_queues) AS q(queue) CROSS JOIN unnest(v_tasks) AS t(task) CROSS JOIN (VALUES (1), (2)) AS l(line)
        CROSS JOIN LATERAL (
            SELECT 1 FROM {schema}.active AS a
            WHERE a.line > 0 AND a.queue = q.queue AND a.line = l.line AND a.task = t.task LIMIT 1
        ) AS n
    ) THEN
        o_next_wake := least(o_next_wake, o_now);
    END IF;
    o_next_expiry := (
        SELECT min(w.expires_at) FROM {schema}.workers AS w WHERE NOT w.emptied AND w.worker_id <> p_worker);
    o_next_tick := (
        SELECT min(c.next_at) FROM {schema}.recurrences AS c WHERE NOT c.stopped AND c.next_at IS NOT NULL);
    o_sweep := EXISTS (SELECT 1 FROM {schema}.workers AS w WHERE NOT w.emptied AND w.expires_at IS NULL)
        OR EXISTS (SELECT 1 FROM {schema}.tally_changes);
END $$;
