-- The operations that are more than one statement, each one call and so one round trip and one commit. Their names carry
-- a version: a later release adds _v2 and leaves these, so that old workers run on while new ones start.
--
-- Why functions and not single statements: under READ COMMITTED a statement locks the newest version of a row but reads
-- everything else as of its own beginning. A claim that leased and loaded in one statement could miss the step that the
-- last owner recorded just before it let go. In a VOLATILE function every statement sees what was committed before it,
-- and the loading comes after the locks.
--
-- Why the settings, and why `= ANY (array)` beside joins that say the same: parameters are arrays of unknown length, and the
-- tables may have been empty when the plan was made, which stays. A table that was vacuumed while it was empty is taken for
-- one row, and reading all of it may then look like the cheapest way into a join. With the array's condition on the table
-- itself, every way into it is a seek.
--
-- Locks of several rows of `active` are taken in the order of run_id, or skipped when taken: no two calls deadlock.

CREATE FUNCTION {schema}.now_v1() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

-- --- starting -------------------------------------------------------------------------------------------------------

-- The ids are distinct. When all of them are new, which is nearly always, the answer is one row: the runs in the order of the call. Else it
-- is a row for each id: what exists now of it, and whether this call created it, or an earlier try of it with the same nonce. An id
-- that belongs to another task undoes the call: SQLSTATE ZT001, the id as detail, its task as hint.
--
-- Arrays may be shorter than that of the ids: of tasks, queues, priorities and tags one element, if it is the same for all; of what may be
-- NULL none, if all are.
CREATE FUNCTION {schema}.start_v1(
    p_execution_ids text[], p_tasks text[], p_inputs bytea[], p_versions text[], p_queues text[], p_priorities bigint[],
    p_tags text[], p_wake_at bigint[], p_delays bigint[], p_timeouts bigint[], p_deadlines bigint[], p_nonces bigint[],
    p_forever bigint, p_keys text[] DEFAULT NULL)
RETURNS TABLE (execution_id text, run_id bigint, created boolean, now bigint, runs bigint[])
LANGUAGE plpgsql
-- Thousands may come at once, and the planner takes an array for ten: what was added is found among what was given by a hash
-- join (measured: 10,000 starts took 10 s by a nested loop).
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := {schema}.now_v1();
    v_runs bigint[];               -- a number for each, in the order of the call: of those due at one time, the first started runs first
    v_added bigint;
    v_all boolean;
    v_new bigint[];
    v_stranger text;
    v_task text;
BEGIN
    v_runs := ARRAY(SELECT nextval('{schema}.run_ids') FROM generate_series(1, cardinality(p_execution_ids)));
    -- In the order of the ids: two batches that overlap wait for each other's unique entries in one order only.
    --
    -- Of many nearly always all are new. Then they are inserted as such: with ON CONFLICT the server inserts each row with a reservation, in
    -- two parts, which takes a fifth longer.
    IF cardinality(v_runs) >= 20 THEN
        BEGIN
            INSERT INTO {schema}.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input, nonce, key)
            SELECT g.run_id, v_now, coalesce(g.priority, p_priorities[1]), 1, g.execution_id, coalesce(g.task, p_tasks[1]),
                   coalesce(g.queue, p_queues[1]), coalesce(g.tags, p_tags[1])::jsonb, g.input, g.nonce, coalesce(g.key, '')
            FROM unnest(v_runs, p_execution_ids, p_tasks, p_inputs, p_queues, p_priorities, p_tags, p_nonces, p_keys)
                AS g(run_id, execution_id, task, input, queue, priority, tags, nonce, key)
            ORDER BY g.execution_id COLLATE "C";
            v_added := cardinality(v_runs);
        EXCEPTION WHEN unique_violation THEN
            v_added := NULL;
        END;
    END IF;
    IF v_added IS NULL THEN
        INSERT INTO {schema}.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input, nonce, key)
        SELECT g.run_id, v_now, coalesce(g.priority, p_priorities[1]), 1, g.execution_id, coalesce(g.task, p_tasks[1]),
               coalesce(g.queue, p_queues[1]), coalesce(g.tags, p_tags[1])::jsonb, g.input, g.nonce, coalesce(g.key, '')
        FROM unnest(v_runs, p_execution_ids, p_tasks, p_inputs, p_queues, p_priorities, p_tags, p_nonces, p_keys)
            AS g(run_id, execution_id, task, input, queue, priority, tags, nonce, key)
        ORDER BY g.execution_id COLLATE "C"
        ON CONFLICT (execution_id, run) DO NOTHING;
        GET DIAGNOSTICS v_added = ROW_COUNT;
    END IF;
    v_all := v_added = cardinality(v_runs);
    IF NOT v_all THEN
        v_new := ARRAY(SELECT r.run_id FROM {schema}.runs AS r WHERE r.run_id = ANY (v_runs));
    END IF;
    IF v_added > 0 THEN
        INSERT INTO {schema}.active (run_id, wake_at, deadline, bytes, priority, queue, task, version, key)
        SELECT t.run_id, least(t.first_at, t.deadline), t.deadline, octet_length(t.input), coalesce(t.priority, p_priorities[1]),
               coalesce(t.queue, p_queues[1]), coalesce(t.task, p_tasks[1]), t.version, coalesce(t.key, '')
        FROM (
            SELECT g.*, least(g.latest, CASE WHEN g.timeout IS NOT NULL
                                             THEN greatest(0, least(g.first_at + g.timeout, p_forever)) END) AS deadline
            FROM (
                SELECT u.*, coalesce(u.wake_at, greatest(0, least(v_now + coalesce(u.delay, 0), p_forever))) AS first_at
                FROM unnest(
                    v_runs, p_tasks, p_inputs, p_versions, p_queues, p_priorities, p_wake_at, p_delays, p_timeouts, p_deadlines,
                    p_keys)
                AS u(run_id, task, input, version, queue, priority, wake_at, delay, timeout, latest, key)
            ) AS g
        ) AS t
        WHERE v_all OR t.run_id IN (SELECT unnest(v_new));
    END IF;
    IF v_all THEN
        created := true; now := v_now; runs := v_runs;
        RETURN NEXT;
        RETURN;
    END IF;
    -- Later statements than the insert: an execution that somebody else created meanwhile is seen by them.
    SELECT wanted.execution_id, r.task INTO v_stranger, v_task
    FROM (
        SELECT w.execution_id, coalesce(w.task, p_tasks[1]) AS task FROM unnest(p_execution_ids, p_tasks) AS w(execution_id, task)
    ) AS wanted
    CROSS JOIN LATERAL (
        SELECT x.task FROM {schema}.runs AS x WHERE x.execution_id = wanted.execution_id ORDER BY x.run DESC LIMIT 1
    ) AS r
    WHERE r.task <> wanted.task LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'an execution id belongs to another task'
            USING ERRCODE = 'ZT001', DETAIL = v_stranger, HINT = v_task;
    END IF;
    RETURN QUERY
    WITH latest AS MATERIALIZED (
        SELECT wanted.execution_id, r.run_id, coalesce(r.nonce = wanted.nonce, false) AS ours
        FROM unnest(p_execution_ids, p_nonces) AS wanted(execution_id, nonce)
        CROSS JOIN LATERAL (
            SELECT x.run_id, x.nonce FROM {schema}.runs AS x
            WHERE x.execution_id = wanted.execution_id ORDER BY x.run DESC LIMIT 1
        ) AS r
    )
    SELECT l.execution_id, l.run_id, n.run_id IS NOT NULL OR l.ours, v_now, NULL::bigint[]
    FROM latest AS l LEFT JOIN unnest(v_new) AS n(run_id) ON n.run_id = l.run_id;
END $$;

-- --- claiming -------------------------------------------------------------------------------------------------------

-- Leases runs found by claim_v1; those that somebody else has or is about to have are passed over. Answers the leased ones
-- in the order given. Raising the epoch fences whoever held the run before: a write of theirs, however late, names
-- another epoch. A first claim (epoch 0) fixes the deadline; only then wake_at is still what the start asked for.
CREATE FUNCTION {schema}.lease_v1(
    p_worker bigint, p_now bigint, p_runs bigint[], p_offers integer[], p_versions text[], p_timeouts bigint[],
    p_forever bigint, p_places text[], OUT o_taken bigint[], OUT o_bytes bigint)
LANGUAGE plpgsql
-- As in start_v1: a nested loop over two lists of 1,000 takes longer than all the rest.
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    WITH pick AS MATERIALIZED (
        SELECT a.run_id, t.place, p_versions[t.offer] AS version, p_timeouts[t.offer] AS timeout, t.queue AS occupied
        FROM unnest(p_runs, p_offers, p_places) WITH ORDINALITY AS t(run_id, offer, queue, place)
        JOIN {schema}.active AS a ON a.run_id = t.run_id
        WHERE a.run_id = ANY (p_runs) AND a.worker_id IS NULL AND a.wake_at <= p_now
        FOR NO KEY UPDATE OF a SKIP LOCKED
    ), leased AS (
        UPDATE {schema}.active AS a SET
            worker_id = p_worker,
            epoch = a.epoch + 1,
            wake_at = NULL,
            waits = 0,
            line = 0,
            place = pick.occupied,
            cleanup = true,
            error = NULL,
            started_at = coalesce(a.started_at, p_now),
            version = CASE a.epoch WHEN 0 THEN pick.version ELSE a.version END,
            deadline = CASE WHEN a.epoch = 0 AND a.deadline IS NULL AND pick.timeout IS NOT NULL
                            THEN least(a.wake_at + pick.timeout, p_forever) ELSE a.deadline END
        FROM pick WHERE a.run_id = pick.run_id AND a.run_id = ANY (p_runs)
        RETURNING a.run_id, pick.place, a.bytes
    )
    SELECT coalesce(array_agg(leased.run_id ORDER BY leased.place), '{}'), coalesce(sum(leased.bytes), 0)
      INTO o_taken, o_bytes FROM leased;
END $$;

-- The first due runs of the only level that there is, which is what a claim mostly finds: found, locked and leased by one statement, with
-- what lease_v1 writes. Race: other claims are after the same runs. Those that they have locked are passed over, for the next ones.
--
-- What is locked is written by its place in the table: cheaper than by its key. Race: somebody has changed a run between the beginning of
-- this statement and the lock, and it is due all the same. Then its newest version is locked, which the statement does not find at that
-- place: it is not leased, and met again by the next claim.
CREATE FUNCTION {schema}.lease_level_v1(
    p_worker bigint, p_now bigint, p_queue text, p_task text, p_priority bigint, p_first_at bigint, p_version text, p_timeout bigint,
    p_limit integer, p_forever bigint, OUT o_taken bigint[], OUT o_bytes bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = on SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    WITH pick AS MATERIALIZED (
        SELECT a.ctid AS place, a.wake_at FROM {schema}.active AS a
        WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = p_queue AND a.task = p_task AND a.priority = p_priority
          AND a.wake_at >= p_first_at AND a.wake_at <= p_now
        ORDER BY a.wake_at, a.run_id LIMIT p_limit
        FOR NO KEY UPDATE SKIP LOCKED
    ), leased AS (
        UPDATE {schema}.active AS a SET
            worker_id = p_worker,
            epoch = a.epoch + 1,
            wake_at = NULL,
            waits = 0,
            line = 0,
            place = NULL,
            cleanup = true,
            error = NULL,
            started_at = coalesce(a.started_at, p_now),
            version = CASE a.epoch WHEN 0 THEN p_version ELSE a.version END,
            deadline = CASE WHEN a.epoch = 0 AND a.deadline IS NULL AND p_timeout IS NOT NULL
                            THEN least(a.wake_at + p_timeout, p_forever) ELSE a.deadline END
        FROM pick WHERE a.ctid = pick.place
        RETURNING a.run_id, pick.wake_at AS due_at, a.bytes
    )
    SELECT coalesce(array_agg(l.run_id ORDER BY l.due_at, l.run_id), '{}'), coalesce(sum(l.bytes), 0)
      INTO o_taken, o_bytes FROM leased AS l;
END $$;

-- Leases due runs to a worker and loads all that is stored of them. The first row is about the claim itself: its run_id is
-- NULL. In it `turn` is NULL when the worker has been declared dead, and another number than p_turn when a release has
-- been made since the claim was sent; in both cases nothing was claimed.
--
-- An answer is one row for each run, and the server makes no row of 1 GB; so much would not come in time either. So runs are
-- loaded until p_bytes have come together, always one, and none of more than p_most_bytes. The others are leased too, and
-- answered with `loaded` false: the caller gives them back, or parks them. Their exact lengths are added up only where
-- active.bytes says that it may be too much.
--
-- Runs that have nothing behind them, which most of those that begin are, come in the first row instead: the arrays first_, with their places
-- among all in first_places. A row of fifty columns takes the server and the driver longer than the claim itself.
CREATE FUNCTION {schema}.claim_v1(
    p_worker bigint, p_turn integer, p_lease bigint, p_queues text[], p_tasks text[], p_versions text[],
    p_timeouts bigint[], p_limit integer, p_overdue integer, p_forever bigint, p_bytes bigint, p_most_bytes bigint)
RETURNS TABLE (
    now bigint, turn integer, next_wake bigint,
    run_id bigint, epoch integer, execution_id text, run integer, task text, version text, input bytea, attempt integer,
    tags text, parent_id text, created_at bigint, started_at bigint, deadline bigint, signal_seq integer,
    open_children integer, cancel_requested boolean, cancel_reason text, queue text, priority bigint,
    step_names text[], step_ordinals integer[], step_kinds text[], step_statuses text[], step_attempts integer[],
    step_started_at bigint[], step_finished_at bigint[], step_wake_at bigint[], step_deadlines bigint[],
    step_event_seqs integer[], step_outputs bytea[], step_errors bytea[], step_details bytea[], step_workers bigint[],
    event_seqs integer[], event_names text[], event_payloads bytea[], event_sent_at bigint[], bytes bigint, loaded boolean,
    first_places integer[], first_run_ids bigint[], first_execution_ids text[], first_runs integer[], first_tasks text[],
    first_versions text[], first_inputs bytea[], first_tags text[], first_created_at bigint[], first_deadlines bigint[],
    first_queues text[], first_priorities bigint[])
LANGUAGE plpgsql
-- Nested loops: as in lease_v1. What is LATERAL is one all the same, and looks so expensive then that servers before version 18
-- would compile it at every call.
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = off SET enable_hashjoin = on
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_turn integer;
    v_now bigint;
    v_next bigint;
    v_queues text[]; v_tasks text[]; v_offers integer[]; v_priorities bigint[]; v_firsts bigint[];  -- the levels
    v_runs bigint[]; v_picks integer[];                                          -- what to take, and for which offer
    v_taken bigint[] := '{}';
    v_bytes bigint := 0;                                                         -- of these, but for small results
    v_left integer := greatest(p_limit, 0);
    v_limited text[]; v_plain text[] := p_queues;                                -- queues with limits, and without
    v_name text;
    v_passed boolean := false;                                                   -- that one with limits could not be looked at
    v_picked record;                                                             -- what those with limits let have
    v_waiting boolean := false;                                                  -- that they let have anything
    v_overdue integer := p_overdue; v_late text[] := p_queues;
BEGIN
    -- First the lease. Race: a reap declares this worker dead. Both update its row: if the reap is first, this finds no
    -- lease; if this is first, the reap finds one that has not passed, or frees what is claimed here.
    UPDATE {schema}.workers AS w SET expires_at = least({schema}.now_v1() + p_lease, p_forever)
    WHERE w.worker_id = p_worker AND w.expires_at IS NOT NULL
    RETURNING w.turn INTO v_turn;
    v_now := {schema}.now_v1();
    IF v_turn IS DISTINCT FROM p_turn THEN
        now := v_now; turn := v_turn;
        RETURN NEXT;
        RETURN;
    END IF;

    -- Queues with limits are locked, in the order of their names, and looked at by themselves: see pick_limited_v1. There are
    -- hardly ever any. The time is read after the locks, so that of two claims the later one has the later time.
    --
    -- Race: another claim has one locked, which it has for some milliseconds, unless its worker is frozen and does not read the answer.
    -- Then nobody may hang on it, as this worker's heartbeats hang on this claim: the queue is passed over, and soon asked for again.
    IF EXISTS (SELECT 1 FROM {schema}.queues AS q WHERE q.name = ANY (p_queues)) THEN
        FOR v_name IN SELECT x.name FROM {schema}.queues AS x WHERE x.name = ANY (p_queues) AND v_left > 0 ORDER BY x.name LOOP
            PERFORM 1 FROM {schema}.queues AS x WHERE x.name = v_name FOR NO KEY UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                BEGIN
                    PERFORM {schema}.patience_v1(200);
                    PERFORM 1 FROM {schema}.queues AS x WHERE x.name = v_name FOR NO KEY UPDATE;
                EXCEPTION WHEN lock_not_available THEN
                    v_passed := true;
                    CONTINUE;
                END;
            END IF;
            v_limited := v_limited || v_name;
        END LOOP;
        v_plain := ARRAY(
            SELECT q.name FROM unnest(p_queues) AS q(name) WHERE q.name NOT IN (SELECT x.name FROM {schema}.queues AS x));
        IF v_limited IS NOT NULL THEN
            v_now := {schema}.now_v1();
            v_picked := {schema}.pick_limited_v1(v_limited, p_tasks, p_timeouts, v_left, v_now, p_forever);
            v_waiting := v_picked.o_runs <> '{}' OR v_picked.o_parts <> '{}';
            IF v_overdue <= 0 THEN
                -- Whose deadline has passed does not wait for a place.
                v_overdue := v_left; v_late := v_limited;
            END IF;
        END IF;
    END IF;

    -- The levels: every queue with every task, and the priorities that occur there, by skip-scan: each step seeks the next
    -- lower one. With the first time of each: before it are only entries of what has been claimed, until the table is vacuumed, which may be
    -- very many. They are walked once, here, and not again by what follows. Race: a run that became due earlier is committed in between: it is
    -- met by the next claim.
    WITH RECURSIVE level AS (
        SELECT q.queue, t.task, t.offer::integer AS offer, l.priority, l.wake_at
        FROM unnest(v_plain) AS q(queue)
        CROSS JOIN unnest(p_tasks) WITH ORDINALITY AS t(task, offer)
        CROSS JOIN LATERAL (
            SELECT a.priority, a.wake_at FROM {schema}.active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = q.queue AND a.task = t.task
            ORDER BY a.priority DESC, a.wake_at LIMIT 1
        ) AS l
        UNION ALL
        SELECT level.queue, level.task, level.offer, l.priority, l.wake_at
        FROM level
        CROSS JOIN LATERAL (
            SELECT a.priority, a.wake_at FROM {schema}.active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC, a.wake_at LIMIT 1
        ) AS l
    )
    SELECT array_agg(level.queue), array_agg(level.task), array_agg(level.offer), array_agg(level.priority),
           array_agg(level.wake_at)
      INTO v_queues, v_tasks, v_offers, v_priorities, v_firsts
      FROM level;

    IF v_queues IS NOT NULL THEN
        SELECT min(n.wake_at) INTO v_next
        FROM unnest(v_queues, v_tasks, v_priorities) AS level(queue, task, priority)
        CROSS JOIN LATERAL (
            SELECT a.wake_at FROM {schema}.active AS a
            WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority = level.priority AND a.wake_at > v_now
            ORDER BY a.wake_at LIMIT 1
        ) AS n;
    END IF;

    IF v_waiting THEN
        IF v_queues IS NOT NULL THEN
            -- One queue after the other, at one priority: neither those with limits nor the rest keep the others waiting.
            SELECT array_agg(f.run_id ORDER BY f.priority DESC, f.rank, f.run_id),
                   array_agg(f.offer ORDER BY f.priority DESC, f.rank, f.run_id)
              INTO v_runs, v_picks
              FROM (
                SELECT c.run_id, level.offer, level.priority,
                       row_number() OVER (PARTITION BY level.priority ORDER BY c.wake_at, c.run_id) AS rank
                FROM unnest(v_queues, v_tasks, v_offers, v_priorities, v_firsts) AS level(queue, task, offer, priority, first_at)
                CROSS JOIN LATERAL (
                    SELECT a.run_id, a.wake_at FROM {schema}.active AS a
                    WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
                      AND a.priority = level.priority AND a.wake_at >= level.first_at AND a.wake_at <= v_now
                    ORDER BY a.wake_at, a.run_id LIMIT v_left
                ) AS c
            ) AS f;
        END IF;
        SELECT l.o_taken, l.o_bytes INTO v_taken, v_bytes
        FROM (
            SELECT array_agg(g.run_id ORDER BY g.priority DESC, g.rank, g.run_id) AS runs,
                   array_agg(g.offer ORDER BY g.priority DESC, g.rank, g.run_id) AS offers,
                   array_agg(g.place ORDER BY g.priority DESC, g.rank, g.run_id) AS places
            FROM (
                SELECT m.* FROM (
                    SELECT x.* FROM unnest(v_picked.o_runs, v_picked.o_offers, v_picked.o_priorities, v_picked.o_ranks, v_picked.o_places)
                        AS x(run_id, offer, priority, rank, place)
                    UNION ALL
                    SELECT x.run_id, x.offer, a.priority, x.rank, NULL
                    FROM unnest(v_runs || v_picked.o_parts, v_picks || v_picked.o_part_offers) WITH ORDINALITY AS x(run_id, offer, rank)
                    JOIN {schema}.active AS a ON a.run_id = x.run_id AND a.run_id = ANY (v_runs || v_picked.o_parts)
                ) AS m
                ORDER BY m.priority DESC, m.rank, m.run_id LIMIT v_left
            ) AS g
        ) AS k
        CROSS JOIN LATERAL {schema}.lease_v1(
            p_worker, v_now, k.runs, k.offers, p_versions, p_timeouts, p_forever, k.places) AS l;
        v_left := v_left - cardinality(v_taken);
        IF v_picked.o_runs <> '{}' AND v_taken <> '{}' THEN
            PERFORM {schema}.served_v1(v_taken, v_now);
        END IF;
    ELSIF cardinality(v_queues) = 1 AND v_left > 0 THEN
        SELECT l.o_taken, l.o_bytes INTO v_taken, v_bytes
        FROM {schema}.lease_level_v1(
            p_worker, v_now, v_queues[1], v_tasks[1], v_priorities[1], v_firsts[1], p_versions[v_offers[1]], p_timeouts[v_offers[1]],
            v_left, p_forever) AS l;
        v_left := v_left - cardinality(v_taken);
    ELSIF v_queues IS NOT NULL AND v_left > 0 THEN
        -- The first of each level, merged. Nothing is locked yet, so that what is not taken stays free for others.
        SELECT array_agg(f.run_id ORDER BY f.priority DESC, f.wake_at, f.run_id),
               array_agg(f.offer ORDER BY f.priority DESC, f.wake_at, f.run_id)
          INTO v_runs, v_picks
          FROM (
            SELECT c.run_id, c.wake_at, level.offer, level.priority
            FROM unnest(v_queues, v_tasks, v_offers, v_priorities, v_firsts) AS level(queue, task, offer, priority, first_at)
            CROSS JOIN LATERAL (
                SELECT a.run_id, a.wake_at FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
                  AND a.priority = level.priority AND a.wake_at >= level.first_at AND a.wake_at <= v_now
                ORDER BY a.wake_at, a.run_id LIMIT v_left
            ) AS c
            ORDER BY level.priority DESC, c.wake_at, c.run_id LIMIT v_left
        ) AS f;
        IF v_runs IS NOT NULL THEN
            SELECT l.o_taken, l.o_bytes INTO v_taken, v_bytes
            FROM {schema}.lease_v1(p_worker, v_now, v_runs, v_picks, p_versions, p_timeouts, p_forever, '{}') AS l;
            v_left := v_left - cardinality(v_taken);
            IF v_left > 0 AND cardinality(v_runs) = p_limit THEN
                -- Other claims were after the same runs, and there are more. Now each level's first free ones are locked,
                -- those passed over as well; they are free again in a moment.
                SELECT array_agg(f.run_id ORDER BY f.priority DESC, f.wake_at, f.run_id),
                       array_agg(f.offer ORDER BY f.priority DESC, f.wake_at, f.run_id)
                  INTO v_runs, v_picks
                  FROM (
                    SELECT c.run_id, c.wake_at, level.offer, level.priority
                    FROM unnest(v_queues, v_tasks, v_offers, v_priorities, v_firsts) AS level(queue, task, offer, priority, first_at)
                    CROSS JOIN LATERAL (
                        SELECT a.run_id, a.wake_at FROM {schema}.active AS a
                        WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
                          AND a.priority = level.priority AND a.wake_at >= level.first_at AND a.wake_at <= v_now
                        ORDER BY a.wake_at, a.run_id LIMIT v_left
                        FOR NO KEY UPDATE SKIP LOCKED
                    ) AS c
                    ORDER BY level.priority DESC, c.wake_at, c.run_id LIMIT v_left
                ) AS f;
                IF v_runs IS NOT NULL THEN
                    SELECT v_taken || l.o_taken, v_bytes + l.o_bytes INTO v_taken, v_bytes
                    FROM {schema}.lease_v1(p_worker, v_now, v_runs, v_picks, p_versions, p_timeouts, p_forever, '{}') AS l;
                END IF;
            END IF;
        END IF;
    END IF;

    v_overdue := least(v_overdue, CASE WHEN p_overdue > 0 THEN p_overdue ELSE v_left END);
    IF (v_queues IS NOT NULL OR cardinality(v_plain) < cardinality(p_queues)) AND v_overdue > 0 THEN
        -- Due runs whose deadline has passed, whatever their priority. A run that was never claimed and has no deadline of
        -- its own gets its handler's when it is claimed; for those the oldest of each level are looked at.
        SELECT array_agg(late.run_id), array_agg(late.offer) INTO v_runs, v_picks
        FROM (
            SELECT c.run_id, t.offer::integer AS offer
            FROM unnest(v_late) AS q(queue)
            CROSS JOIN unnest(p_tasks) WITH ORDINALITY AS t(task, offer)
            CROSS JOIN LATERAL (
                SELECT a.run_id FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.deadline IS NOT NULL
                  AND a.queue = q.queue AND a.task = t.task AND a.deadline <= v_now
                  -- Not `wake_at <= v_now`: that would make the other index look good, where all that sleep are walked.
                  AND coalesce(a.wake_at, p_forever) <= v_now
                ORDER BY a.deadline LIMIT v_overdue
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS c
            UNION ALL
            SELECT c.run_id, level.offer
            FROM unnest(v_queues, v_tasks, v_offers, v_priorities, v_firsts) AS level(queue, task, offer, priority, first_at)
            CROSS JOIN LATERAL (
                SELECT a.run_id FROM {schema}.active AS a
                WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
                  AND a.priority = level.priority AND a.wake_at >= level.first_at
                  AND a.wake_at <= v_now - p_timeouts[level.offer]
                  AND a.epoch = 0 AND a.deadline IS NULL
                ORDER BY a.wake_at LIMIT v_overdue
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS c
            LIMIT v_overdue
        ) AS late;
        IF v_runs IS NOT NULL THEN
            SELECT v_taken || l.o_taken, v_bytes + l.o_bytes INTO v_taken, v_bytes
            FROM {schema}.lease_v1(p_worker, v_now, v_runs, v_picks, p_versions, p_timeouts, p_forever, '{}') AS l;
        END IF;
    END IF;

    now := v_now; turn := v_turn; next_wake := v_next;
    IF v_limited IS NOT NULL THEN
        next_wake := least(v_next, v_picked.o_next);
    END IF;
    IF v_passed THEN
        next_wake := least(next_wake, v_now + 100000);
    END IF;
    -- After the locks, by a snapshot of its own: all that the last owners made durable is in it.
    IF v_taken <> '{}' AND v_bytes <= p_bytes THEN
        SELECT array_agg(f.place), array_agg(f.run_id), array_agg(f.execution_id), array_agg(f.run), array_agg(f.task),
               array_agg(f.version), array_agg(f.input), array_agg(f.tags), array_agg(f.created_at), array_agg(f.deadline),
               array_agg(f.queue), array_agg(f.priority)
          INTO first_places, first_run_ids, first_execution_ids, first_runs, first_tasks, first_versions, first_inputs, first_tags,
               first_created_at, first_deadlines, first_queues, first_priorities
          FROM (
            SELECT t.place::integer AS place, a.run_id, r.execution_id, r.run, a.task, a.version, r.input, r.tags::text AS tags,
                   r.created_at, a.deadline, a.queue, a.priority
            FROM unnest(v_taken) WITH ORDINALITY AS t(run_id, place)
            JOIN {schema}.active AS a ON a.run_id = t.run_id AND a.run_id = ANY (v_taken)
            JOIN {schema}.runs AS r ON r.run_id = t.run_id AND r.run_id = ANY (v_taken)
            WHERE a.epoch = 1 AND a.signal_seq = 0 AND a.open_children = 0 AND a.attempt = 0 AND NOT a.cancel_requested
              AND a.parent_run IS NULL AND a.started_at = v_now AND r.trigger NOT IN ('rerun', 'fork')
            ORDER BY t.place
          ) AS f;
    END IF;
    RETURN NEXT;
    IF cardinality(v_taken) = coalesce(cardinality(first_run_ids), 0) THEN RETURN; END IF;

    IF v_bytes <= p_bytes THEN
        RETURN QUERY
        SELECT NULL::bigint, NULL::integer, NULL::bigint,
               a.run_id, a.epoch, r.execution_id, r.run, a.task, a.version, r.input, a.attempt, r.tags::text,
               (SELECT p.execution_id FROM {schema}.runs AS p WHERE p.run_id = a.parent_run),
               r.created_at, a.started_at, a.deadline, a.signal_seq, a.open_children, a.cancel_requested, a.cancel_reason,
               a.queue, a.priority,
               s.names, s.ordinals, s.kinds, s.statuses, s.attempts, s.started_at, s.finished_at, s.wake_at, s.deadlines,
               s.event_seqs, s.outputs, s.errors, s.details, s.workers,
               e.seqs, e.names, e.payloads, e.sent_at, NULL::bigint, true,
               NULL::integer[], NULL::bigint[], NULL::text[], NULL::integer[], NULL::text[], NULL::text[], NULL::bytea[],
               NULL::text[], NULL::bigint[], NULL::bigint[], NULL::text[], NULL::bigint[]
        FROM unnest(v_taken) WITH ORDINALITY AS t(run_id, place)
        JOIN {schema}.active AS a ON a.run_id = t.run_id AND a.run_id = ANY (v_taken)
        JOIN {schema}.runs AS r ON r.run_id = t.run_id AND r.run_id = ANY (v_taken)
        -- A first claim has no steps, unless they were taken over of another run; and fifteen empty arrays take longer than all else.
        LEFT JOIN LATERAL (
            SELECT x.* FROM (SELECT 1 WHERE a.epoch > 1 OR r.trigger IN ('rerun', 'fork') OFFSET 0) AS has
            CROSS JOIN LATERAL (
                SELECT array_agg(x.name) AS names, array_agg(x.ordinal) AS ordinals, array_agg(x.kind) AS kinds,
                       array_agg(x.status) AS statuses, array_agg(x.attempts) AS attempts, array_agg(x.started_at) AS started_at,
                       array_agg(x.finished_at) AS finished_at, array_agg(x.wake_at) AS wake_at,
                       array_agg(x.deadline) AS deadlines, array_agg(x.event_seq) AS event_seqs,
                       array_agg(x.output) AS outputs, array_agg(x.error) AS errors, array_agg(x.details) AS details,
                       array_agg(x.worker_id) AS workers
                FROM {schema}.steps AS x WHERE x.run_id = t.run_id
            ) AS x
        ) AS s ON true
        LEFT JOIN LATERAL (
            SELECT x.* FROM (SELECT 1 WHERE a.signal_seq > 0 OFFSET 0) AS has
            CROSS JOIN LATERAL (
                SELECT array_agg(o.seq) AS seqs, array_agg(o.name) AS names, array_agg(o.payload) AS payloads,
                       array_agg(o.sent_at) AS sent_at
                FROM (SELECT * FROM {schema}.events AS v WHERE v.run_id = t.run_id ORDER BY v.seq) AS o
            ) AS x
        ) AS e ON true
        WHERE first_places IS NULL OR t.place NOT IN (SELECT unnest(first_places))
        ORDER BY t.place;
        RETURN;
    END IF;
    RETURN QUERY
    WITH head AS MATERIALIZED (
        SELECT h.*, sum(h.bytes) FILTER (WHERE h.bytes <= p_most_bytes) OVER (ORDER BY h.place) AS so_far
        FROM (
            SELECT t.place, a.run_id, a.epoch, r.execution_id, r.run, a.task, a.version, r.input, a.attempt, r.tags,
                   a.parent_run, r.created_at, a.started_at, a.deadline, a.signal_seq, a.open_children,
                   a.cancel_requested, a.cancel_reason, a.queue, a.priority,
                   octet_length(r.input)
                   -- A first claim has no steps, unless they were taken over of another run.
                   + CASE WHEN a.epoch > 1 OR r.trigger IN ('rerun', 'fork') THEN (
                         SELECT coalesce(sum(octet_length(x.output)), 0) + coalesce(sum(octet_length(x.error)), 0)
                                + coalesce(sum(octet_length(x.details)), 0)
                         FROM {schema}.steps AS x WHERE x.run_id = t.run_id)
                     ELSE 0 END
                   + CASE WHEN a.signal_seq > 0 THEN (
                         SELECT coalesce(sum(octet_length(v.payload)), 0) FROM {schema}.events AS v WHERE v.run_id = t.run_id)
                     ELSE 0 END AS bytes
            FROM unnest(v_taken) WITH ORDINALITY AS t(run_id, place)
            JOIN {schema}.active AS a ON a.run_id = t.run_id AND a.run_id = ANY (v_taken)
            JOIN {schema}.runs AS r ON r.run_id = t.run_id AND r.run_id = ANY (v_taken)
        ) AS h
    ), fit AS (
        SELECT h.*, h.bytes <= p_most_bytes AND (h.so_far <= p_bytes OR h.so_far = h.bytes) AS loaded FROM head AS h
    )
    SELECT NULL::bigint, NULL::integer, NULL::bigint,
           h.run_id, h.epoch, h.execution_id, h.run, h.task, h.version, CASE WHEN h.loaded THEN h.input END, h.attempt,
           h.tags::text, (SELECT p.execution_id FROM {schema}.runs AS p WHERE p.run_id = h.parent_run),
           h.created_at, h.started_at, h.deadline, h.signal_seq, h.open_children, h.cancel_requested, h.cancel_reason,
           h.queue, h.priority,
           s.names, s.ordinals, s.kinds, s.statuses, s.attempts, s.started_at, s.finished_at, s.wake_at, s.deadlines,
           s.event_seqs, s.outputs, s.errors, s.details, s.workers,
           e.seqs, e.names, e.payloads, e.sent_at, h.bytes::bigint, h.loaded,
           NULL::integer[], NULL::bigint[], NULL::text[], NULL::integer[], NULL::text[], NULL::text[], NULL::bytea[],
           NULL::text[], NULL::bigint[], NULL::bigint[], NULL::text[], NULL::bigint[]
    FROM fit AS h
    LEFT JOIN LATERAL (
        SELECT array_agg(x.name) AS names, array_agg(x.ordinal) AS ordinals, array_agg(x.kind) AS kinds,
               array_agg(x.status) AS statuses, array_agg(x.attempts) AS attempts, array_agg(x.started_at) AS started_at,
               array_agg(x.finished_at) AS finished_at, array_agg(x.wake_at) AS wake_at,
               array_agg(x.deadline) AS deadlines, array_agg(x.event_seq) AS event_seqs,
               array_agg(x.output) AS outputs, array_agg(x.error) AS errors, array_agg(x.details) AS details,
               array_agg(x.worker_id) AS workers
        FROM {schema}.steps AS x WHERE x.run_id = h.run_id AND h.loaded
    ) AS s ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(o.seq) AS seqs, array_agg(o.name) AS names, array_agg(o.payload) AS payloads,
               array_agg(o.sent_at) AS sent_at
        FROM (SELECT * FROM {schema}.events AS v WHERE v.run_id = h.run_id AND h.loaded ORDER BY v.seq) AS o
    ) AS e ON true
    ORDER BY h.place;
END $$;

-- --- transactions of steps -----------------------------------------------------------------------------------------

-- Writes the row of a step at the end of the user's transaction. 'lost': the run is not this worker's any more; 'finished': the
-- step has a finished row, from an earlier try whose answer was lost. In both cases the caller undoes the transaction. The
-- run's row is locked here and not at its beginning, so that a long transaction holds up neither events nor other steps;
-- nobody can take the run between this check and the commit.
CREATE FUNCTION {schema}.transact_v1(
    p_worker bigint, p_run bigint, p_epoch integer, p_name text, p_ordinal integer, p_kind text, p_status text,
    p_attempts integer, p_started_at bigint, p_finished_at bigint, p_wake_at bigint, p_deadline bigint,
    p_event_seq integer, p_step_worker bigint, p_output bytea, p_error bytea, p_details bytea,
    OUT o_now bigint, OUT o_outcome text)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM 1 FROM {schema}.active AS a
    WHERE a.run_id = p_run AND a.worker_id = p_worker AND a.epoch = p_epoch FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        o_now := {schema}.now_v1();
        o_outcome := 'lost';
        RETURN;
    END IF;
    -- From here to the commit the run's row is locked, and a reap would pass it over: a worker that is frozen in between must
    -- not keep it from the others. Its connection is one lent to users, which have no such limit else.
    PERFORM set_config('idle_in_transaction_session_timeout', '5000', true);
    o_now := {schema}.now_v1();
    INSERT INTO {schema}.steps AS t (
        run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
        output, error, details)
    VALUES (
        p_run, p_name, p_ordinal, p_kind, p_status, p_attempts, p_started_at, p_finished_at, p_wake_at, p_deadline,
        p_event_seq, p_step_worker, p_output, p_error, p_details)
    ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
        kind = excluded.kind, status = excluded.status, attempts = excluded.attempts, started_at = excluded.started_at,
        finished_at = excluded.finished_at, wake_at = excluded.wake_at, deadline = excluded.deadline,
        event_seq = excluded.event_seq, worker_id = excluded.worker_id, output = excluded.output,
        error = excluded.error, details = excluded.details
    WHERE t.status = 'pending';
    o_outcome := CASE WHEN FOUND THEN 'written' ELSE 'finished' END;
    IF FOUND AND octet_length(p_output) >= 8192 THEN
        UPDATE {schema}.active AS a SET bytes = a.bytes + octet_length(p_output) WHERE a.run_id = p_run;
    END IF;
END $$;

-- --- signals --------------------------------------------------------------------------------------------------------

-- o_outcome: 'missing', 'finished', 'known' (the event_id was there), 'taken'. o_ready: it made the run claimable.
-- o_running: somebody holds the run and has to be told.
CREATE FUNCTION {schema}.offer_v1(
    p_execution_id text, p_name text, p_payload bytea, p_event_id text,
    OUT o_outcome text, OUT o_now bigint, OUT o_run bigint, OUT o_ready boolean, OUT o_running boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run {schema}.active;
    v_latest {schema}.runs;
    v_chain bigint[];
BEGIN
    o_ready := false; o_running := false;
    LOOP
        SELECT r.* INTO v_latest FROM {schema}.runs AS r
        WHERE r.execution_id = p_execution_id ORDER BY r.run DESC LIMIT 1;
        IF v_latest.run_id IS NULL THEN
            o_outcome := 'missing'; o_now := {schema}.now_v1();
            RETURN;
        END IF;
        o_run := v_latest.run_id;
        SELECT a.* INTO v_run FROM {schema}.active AS a WHERE a.run_id = o_run FOR NO KEY UPDATE;
        -- Race: while this waited for the lock the run has gone on as the next one, or was restarted. Then the event is for that.
        EXIT WHEN v_run.run_id IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM {schema}.runs AS n WHERE n.execution_id = p_execution_id AND n.run > v_latest.run);
    END LOOP;
    o_now := {schema}.now_v1();
    IF p_event_id IS NOT NULL THEN
        -- In this run and in those that it continues: an offer may be repeated, because its answer was lost, when the run has
        -- gone on as the next one. Of those only the last hundred: a repeated offer is not that late.
        v_chain := ARRAY[o_run];
        WHILE v_latest.trigger = 'continue' AND cardinality(v_chain) < 100 LOOP
            SELECT r.* INTO v_latest FROM {schema}.runs AS r
            WHERE r.execution_id = p_execution_id AND r.run = v_latest.run - 1;
            EXIT WHEN NOT FOUND;
            v_chain := v_chain || v_latest.run_id;
        END LOOP;
        -- Before the question whether the run is live: a caller who repeats an offer whose answer was lost may come when the
        -- run has consumed the event and finished. After the lock: of two with one id, the second finds the first's.
        IF EXISTS (SELECT 1 FROM {schema}.events AS e WHERE e.run_id = ANY (v_chain) AND e.event_id = p_event_id) THEN
            o_outcome := 'known';
            RETURN;
        END IF;
    END IF;
    IF v_run.run_id IS NULL THEN
        o_outcome := 'finished';
        RETURN;
    END IF;
    INSERT INTO {schema}.events (run_id, sent_at, seq, name, event_id, payload)
    VALUES (o_run, o_now, v_run.signal_seq + 1, p_name, p_event_id, p_payload);
    -- Race: a suspension. Both hold the row's lock: if it is first, waits says so and it is woken here; if it is later, it
    -- finds signal_seq raised and is refused.
    o_running := v_run.worker_id IS NOT NULL;
    o_ready := NOT o_running AND v_run.waits & 2 <> 0 AND NOT v_run.quarantined;
    UPDATE {schema}.active AS a SET
        signal_seq = a.signal_seq + 1,
        bytes = a.bytes + octet_length(p_payload),
        wake_at = CASE WHEN o_ready THEN least(o_now, a.wake_at) ELSE a.wake_at END
    WHERE a.run_id = o_run;
    o_outcome := 'taken';
END $$;

-- --- leases ---------------------------------------------------------------------------------------------------------

-- One portion of what dead workers hold; called until it frees nothing. Of 1,000 runs at a time, so that no lock is held
-- for long; rows that somebody has locked are passed over and met again. o_condemned: runs that would be quarantined, but whose
-- cancellation was accepted. They stay with their dead worker until park_v1 has ended them; p_skip are those known already.
CREATE FUNCTION {schema}.free_dead_v1(
    p_most integer, p_error bytea, p_skip bigint[],
    OUT o_freed integer, OUT o_condemned bigint[], OUT o_workers bigint[], OUT o_epochs integer[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now bigint := {schema}.now_v1();
    v_runs bigint[];
BEGIN
    o_freed := 0;
    SELECT array_agg(held.run_id) INTO v_runs
    FROM (
        SELECT c.run_id FROM {schema}.workers AS w
        CROSS JOIN LATERAL (
            SELECT a.run_id FROM {schema}.active AS a WHERE a.worker_id = w.worker_id AND a.run_id <> ALL (p_skip)
            LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED
        ) AS c
        WHERE NOT w.emptied AND w.expires_at IS NULL
        LIMIT 1000
    ) AS held;
    IF v_runs IS NULL THEN RETURN; END IF;
    -- A worker died with these runs. Rows of history that came or went since the last such death show that the run got
    -- on: then the count begins anew, else it grows. At p_most the run is quarantined.
    WITH counted AS MATERIALIZED (
        SELECT t.run_id, h.length, a.worker_id, a.epoch, a.cancel_requested,
               CASE WHEN h.length <> a.progress THEN 1 ELSE a.crashes + 1 END AS crashes
        FROM unnest(v_runs) AS t(run_id)
        JOIN {schema}.active AS a ON a.run_id = t.run_id AND a.run_id = ANY (v_runs)
        CROSS JOIN LATERAL (
            SELECT ((SELECT count(*) + count(*) FILTER (WHERE s.status <> 'pending')
                     FROM {schema}.steps AS s WHERE s.run_id = t.run_id)
                    + (SELECT count(*) FROM {schema}.attempts AS x WHERE x.run_id = t.run_id))::integer AS length
        ) AS h
    ), freed AS (
        UPDATE {schema}.active AS a SET
            worker_id = NULL,
            wake_at = CASE WHEN c.crashes >= p_most THEN NULL ELSE v_now END,
            quarantined = c.crashes >= p_most,
            error = CASE WHEN c.crashes >= p_most THEN p_error ELSE a.error END,
            crashes = c.crashes,
            progress = c.length
        FROM counted AS c
        WHERE a.run_id = c.run_id AND a.run_id = ANY (v_runs) AND NOT (c.crashes >= p_most AND c.cancel_requested)
        RETURNING a.run_id
    )
    SELECT (SELECT count(*) FROM freed), array_agg(c.run_id), array_agg(c.worker_id), array_agg(c.epoch)
      INTO o_freed, o_condemned, o_workers, o_epochs
      FROM counted AS c WHERE c.crashes >= p_most AND c.cancel_requested;
END $$;

-- Frees what a worker holds but for the runs to keep. Raising the turn shuts out a claim of this worker that was sent
-- before and has not arrived yet: its answer would reach nobody. A claim that runs right now is waited for: it holds the
-- worker's row. o_turn is NULL for a worker that is not there. Rows that somebody has locked are not waited for: it may be a
-- user's transaction, open for long, and the worker's row is locked here, which its heartbeats need. They are in o_left, with
-- their epochs, and the caller frees them later.
CREATE FUNCTION {schema}.release_v1(
    p_worker bigint, p_keep bigint[],
    OUT o_now bigint, OUT o_turn integer, OUT o_freed integer, OUT o_left bigint[], OUT o_epochs integer[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_runs bigint[];
BEGIN
    UPDATE {schema}.workers AS w SET turn = w.turn + 1 WHERE w.worker_id = p_worker RETURNING w.turn INTO o_turn;
    v_runs := ARRAY(
        SELECT a.run_id FROM {schema}.active AS a
        WHERE a.worker_id = p_worker AND a.run_id <> ALL (p_keep) ORDER BY a.run_id FOR NO KEY UPDATE SKIP LOCKED);
    o_now := {schema}.now_v1();
    UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = o_now
    WHERE a.run_id = ANY (v_runs) AND a.worker_id = p_worker;
    GET DIAGNOSTICS o_freed = ROW_COUNT;
    SELECT coalesce(array_agg(a.run_id), '{}'), coalesce(array_agg(a.epoch), '{}') INTO o_left, o_epochs
    FROM {schema}.active AS a WHERE a.worker_id = p_worker AND a.run_id <> ALL (p_keep);
END $$;

-- Ends a lease and frees what was held under it. The worker's row is first, as in a claim: none of its claims comes later. Rows
-- that somebody has locked are passed over, as above: o_left of them stay, and so long the worker is one that a reap looks at.
CREATE FUNCTION {schema}.deregister_v1(p_worker bigint, OUT o_now bigint, OUT o_freed integer, OUT o_left integer)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_runs bigint[];
BEGIN
    UPDATE {schema}.workers AS w SET expires_at = NULL WHERE w.worker_id = p_worker;
    v_runs := ARRAY(
        SELECT a.run_id FROM {schema}.active AS a
        WHERE a.worker_id = p_worker ORDER BY a.run_id FOR NO KEY UPDATE SKIP LOCKED);
    o_now := {schema}.now_v1();
    UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = o_now
    WHERE a.run_id = ANY (v_runs) AND a.worker_id = p_worker;
    GET DIAGNOSTICS o_freed = ROW_COUNT;
    SELECT count(*) INTO o_left FROM {schema}.active AS a WHERE a.worker_id = p_worker;
    IF o_left = 0 THEN
        UPDATE {schema}.workers AS w SET emptied = true WHERE w.worker_id = p_worker;
    END IF;
END $$;
