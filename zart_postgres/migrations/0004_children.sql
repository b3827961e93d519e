-- Children: runs that answer a call of another run, their parent. parent_run of active is set for awaited children only, that
-- of runs for detached ones too. With it, parent_name and parent_ordinal name the row of steps that waits for the child: the
-- child's end completes or fails that row, whatever its kind, and gives it the parent's next signal as its event_seq.
ALTER TABLE {schema}.active ADD COLUMN parent_name text COLLATE "C";
ALTER TABLE {schema}.active ADD COLUMN parent_ordinal integer;
-- With the bit 4 of waits: the run is woken when no more than this many of its children are open.
ALTER TABLE {schema}.active ADD COLUMN children_left integer NOT NULL DEFAULT 0;
-- Of the children of one run in one lane only so many may be claimed at once. The others are held back, without a wake_at, and
-- the end of one lets the next in.
ALTER TABLE {schema}.active ADD COLUMN held boolean NOT NULL DEFAULT false;
ALTER TABLE {schema}.active ADD COLUMN lane text COLLATE "C";
CREATE INDEX active_lane ON {schema}.active (parent_run, lane, held, run_id) WHERE lane IS NOT NULL;

-- The open children of a run that ends or is cancelled.
CREATE INDEX active_parent ON {schema}.active (parent_run) WHERE parent_run IS NOT NULL;
-- Calls whose child has ended, in that order: what a parent in memory has not heard of yet. (An event's row has the number
-- of the event.)
CREATE INDEX steps_ended ON {schema}.steps (run_id, event_seq) WHERE event_seq IS NOT NULL AND kind <> 'event';

-- What was said of plans at the beginning of the functions holds here too, and more of it: a run may have ten thousand
-- children, and each flush is about some of them. Where rows are sought one by one, it is by a LATERAL subquery with OFFSET 0,
-- which can be nothing but a loop of seeks. Where lists are joined, nested loops are switched off; a plan that has one all the
-- same looks so expensive to older servers that they would compile it at every call, so that is switched off too.

-- --- locks ----------------------------------------------------------------------------------------------------------

-- All open descendants of runs, as far as they can be seen now. Nothing is looked for below a run without open children.
CREATE FUNCTION {schema}.descendants_v1(p_runs bigint[]) RETURNS bigint[]
LANGUAGE plpgsql
AS $$
DECLARE
    v_found bigint[] := '{}';
    v_level bigint[];
    v_front bigint[] := p_runs;
BEGIN
    -- Level by level and not as a recursive query: by an array, every way into the table is a seek.
    LOOP
        SELECT array_agg(c.run_id), array_agg(c.run_id) FILTER (WHERE c.open_children > 0) INTO v_level, v_front
        FROM {schema}.active AS c WHERE c.parent_run = ANY (v_front);
        EXIT WHEN v_level IS NULL;
        v_found := v_found || v_level;
        EXIT WHEN v_front IS NULL;
    END LOOP;
    RETURN v_found;
END $$;

-- Locks what a call is about: the runs it names, the parents of those that it may end, and all that descend from those.
-- Answers which of the runs the worker holds with the epoch given, which of these were cancelled, and whether any that may
-- end is a child. A second call in the same transaction finds its locks taken.
--
-- Everybody takes locks in the order of run_id, so no two calls wait for each other in a circle. A child is younger than its
-- parent and has the higher number: down the tree is upwards.
-- Race: a run of the family starts a child while this waits for its lock. So the family is looked through once more when it
-- is locked and can start nothing any more. Newcomers have higher numbers than all that is locked, and are locked then, in
-- their order. Should one have a lower number (given out before it was stored), the call is undone, and the caller repeats it.
--
-- p_pass: nothing is waited for. Runs of which something is locked by somebody else (a user's transaction may be open for long)
-- are in o_busy, and not in the other two: nothing may be written of them.
CREATE FUNCTION {schema}.lock_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[], p_ending bigint[], p_pass boolean DEFAULT false,
    OUT o_held bigint[], OUT o_cancelled bigint[], OUT o_children boolean, OUT o_busy bigint[])
LANGUAGE plpgsql
AS $$
DECLARE
    v_all bigint[] := p_runs;
    v_parents bigint[];
    v_below bigint[];              -- the descendants
    v_open bigint[];               -- those with open children
    v_locked bigint[];
    v_others bigint[];             -- what somebody else has locked
    v_new bigint[];
    v_top bigint;
BEGIN
    o_busy := '{}';
    IF cardinality(p_ending) > 0 THEN
        SELECT array_agg(DISTINCT a.parent_run) FILTER (WHERE a.parent_run IS NOT NULL),
               array_agg(a.run_id) FILTER (WHERE a.open_children > 0)
          INTO v_parents, v_open
          FROM {schema}.active AS a WHERE a.run_id = ANY (p_ending);
        v_all := v_all || v_parents;
        o_children := v_parents IS NOT NULL;
        IF v_open IS NOT NULL THEN
            v_below := {schema}.descendants_v1(v_open);
            v_all := v_all || v_below;
        END IF;
    END IF;

    -- The locked rows are the newest versions, and nobody can take a run between this check and what is written then: a
    -- claim needs the same lock.
    IF NOT p_pass THEN
        WITH locked AS MATERIALIZED (
            SELECT a.run_id, a.worker_id, a.epoch, a.cancel_requested, a.open_children
            FROM {schema}.active AS a WHERE a.run_id = ANY (v_all)
            ORDER BY a.run_id FOR NO KEY UPDATE
        )
        SELECT coalesce(array_agg(l.run_id) FILTER (WHERE n.run_id IS NOT NULL), '{}'),
               coalesce(array_agg(l.run_id) FILTER (WHERE n.run_id IS NOT NULL AND l.cancel_requested), '{}'),
               array_agg(l.run_id) FILTER (WHERE l.open_children > 0)
          INTO o_held, o_cancelled, v_open
          FROM locked AS l
          LEFT JOIN unnest(p_runs, p_epochs) AS n(run_id, epoch)
            ON n.run_id = l.run_id AND n.epoch = l.epoch AND l.worker_id = p_worker;
    ELSE
        WITH locked AS MATERIALIZED (
            SELECT a.run_id, a.worker_id, a.epoch, a.cancel_requested, a.open_children
            FROM {schema}.active AS a WHERE a.run_id = ANY (v_all)
            ORDER BY a.run_id FOR NO KEY UPDATE SKIP LOCKED
        )
        SELECT coalesce(array_agg(l.run_id) FILTER (WHERE n.run_id IS NOT NULL), '{}'),
               coalesce(array_agg(l.run_id) FILTER (WHERE n.run_id IS NOT NULL AND l.cancel_requested), '{}'),
               array_agg(l.run_id) FILTER (WHERE l.open_children > 0), array_agg(l.run_id)
          INTO o_held, o_cancelled, v_open, v_locked
          FROM locked AS l
          LEFT JOIN unnest(p_runs, p_epochs) AS n(run_id, epoch)
            ON n.run_id = l.run_id AND n.epoch = l.epoch AND l.worker_id = p_worker;
        IF coalesce(cardinality(v_locked), 0) < cardinality(v_all) THEN
            -- Some are locked by others, or are not there any more. Race: whoever had one locked lets it go just now. Then it is
            -- as busy as before, unless it is not the worker's any more: that it never is again with this epoch.
            SELECT array_agg(x.run_id) INTO v_others
            FROM (
                SELECT a.run_id FROM {schema}.active AS a WHERE a.run_id = ANY (v_all) EXCEPT SELECT unnest(v_locked)
            ) AS x;
        END IF;
        IF v_others IS NOT NULL THEN
            SELECT coalesce(array_agg(a.run_id), '{}') INTO o_busy
            FROM {schema}.active AS a JOIN unnest(p_runs, p_epochs) AS n(run_id, epoch) ON n.run_id = a.run_id
            WHERE a.run_id = ANY (p_runs) AND a.worker_id = p_worker AND a.epoch = n.epoch
              AND (a.run_id = ANY (v_others)
                   OR a.run_id = ANY (p_ending)
                      AND (a.parent_run = ANY (v_others) OR a.open_children > 0 AND v_below && v_others));
        END IF;
    END IF;

    IF v_open IS NOT NULL AND cardinality(p_ending) > 0 THEN
        SELECT array_agg(x.run_id) INTO v_open
        FROM (SELECT unnest(v_open) AS run_id INTERSECT SELECT unnest(p_ending) EXCEPT SELECT unnest(o_busy)) AS x;
        SELECT max(x.run_id) INTO v_top FROM unnest(v_all) AS x(run_id);
        WHILE v_open IS NOT NULL LOOP
            SELECT array_agg(x.run_id ORDER BY x.run_id) INTO v_new
            FROM (SELECT unnest({schema}.descendants_v1(v_open)) AS run_id EXCEPT SELECT unnest(v_all)) AS x;
            EXIT WHEN v_new IS NULL;
            IF p_pass THEN
                o_busy := o_busy || v_open;
                EXIT;
            END IF;
            IF v_new[1] < v_top THEN
                RAISE EXCEPTION 'a run that is to be cancelled has just started a child' USING ERRCODE = 'serialization_failure';
            END IF;
            PERFORM 1 FROM {schema}.active AS a WHERE a.run_id = ANY (v_new) ORDER BY a.run_id FOR NO KEY UPDATE;
            v_all := v_all || v_new;
            v_top := v_new[cardinality(v_new)];
        END LOOP;
    END IF;

    IF o_busy <> '{}' THEN
        o_held := ARRAY(SELECT unnest(o_held) EXCEPT SELECT unnest(o_busy));
        o_cancelled := ARRAY(SELECT unnest(o_cancelled) EXCEPT SELECT unnest(o_busy));
    END IF;
END $$;

-- How a flush waits for locks: not at all with a patience of 0; a number of milliseconds, after which the statement fails with
-- SQLSTATE 55P03; or (NULL) as long as it takes. A new execution_id is waited for in any case, while a transaction is open that
-- starts the same: a moment then.
CREATE FUNCTION {schema}.patience_v1(p_patience integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_patience IS NOT NULL THEN
        PERFORM set_config('lock_timeout', greatest(p_patience, 20) || 'ms', true);
    END IF;
END $$;

-- --- starting children ----------------------------------------------------------------------------------------------

-- Starts children of a worker's runs, and writes the rows of the calls that start them: the first part of a flush, which has
-- to follow in the same statement. p_runs, p_epochs and p_ending are the flush's: all its locks are taken here. A call that
-- has a row has had its child, since both are written in one commit. c_ is of the row, with its error in c_taken should the
-- execution_id be taken; n_ is of the new run. o_worker is p_worker: a flush that is given it cannot be evaluated before. o_busy
-- is for that flush too: runs of which nothing was written here.
CREATE FUNCTION {schema}.start_children_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[], p_ending bigint[],
    c_run bigint[], c_name text[], c_ordinal integer[], c_kind text[], c_status text[], c_attempts integer[],
    c_started_at bigint[], c_finished_at bigint[], c_deadline bigint[], c_worker bigint[], c_output bytea[],
    c_details bytea[], c_taken bytea[],
    n_execution_id text[], n_task text[], n_input bytea[], n_version text[], n_queue text[], n_priority bigint[],
    n_tags text[], n_wake_at bigint[], n_delay bigint[], n_timeout bigint[], n_deadline bigint[], n_nonce bigint[],
    n_lane text[], n_at_once integer[],
    p_forever bigint, p_patience integer,
    OUT o_worker bigint, OUT o_ready boolean, OUT o_signals bigint[], OUT o_busy bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now bigint;
    v_lock record;
    v_places bigint[]; v_children bigint[];  -- calls to be answered: the place of each, and its run if one was made
BEGIN
    o_worker := p_worker; o_ready := false; o_signals := '{}';
    PERFORM {schema}.patience_v1(p_patience);
    v_lock := {schema}.lock_v1(p_worker, p_runs, p_epochs, p_ending, coalesce(p_patience = 0, false));
    o_busy := v_lock.o_busy;
    v_now := {schema}.now_v1();

    WITH call AS MATERIALIZED (
        -- Numbered in the order of the calls: of those due at one time, the first started runs first.
        SELECT nextval('{schema}.run_ids') AS run_id, k.*,
               coalesce(k.wake_at, greatest(0, least(v_now + coalesce(k.delay, 0), p_forever))) AS first_at
        FROM (
            SELECT u.* FROM unnest(
                c_run, c_name, c_ordinal, c_kind, c_status, n_execution_id, n_task, n_input, n_version, n_queue, n_priority,
                n_tags, n_wake_at, n_delay, n_timeout, n_deadline, n_nonce, n_lane, n_at_once) WITH ORDINALITY
            AS u(parent_run, name, ordinal, kind, status, execution_id, task, input, version, queue, priority, tags,
                 wake_at, delay, timeout, latest, nonce, lane, at_once, place)
            LEFT JOIN LATERAL (
                SELECT true AS known FROM {schema}.steps AS s
                WHERE s.run_id = u.parent_run AND s.name = u.name AND s.ordinal = u.ordinal OFFSET 0
            ) AS s ON true
            WHERE s.known IS NULL AND u.parent_run IN (SELECT unnest(v_lock.o_held))
            ORDER BY u.place
        ) AS k
    ), added AS (
        -- In the order of the ids: two batches that overlap wait for each other's unique entries in one order only.
        INSERT INTO {schema}.runs AS r (
            run_id, parent_run, created_at, priority, run, execution_id, task, queue, tags, input, nonce)
        -- A part has its execution's id and a number below zero: so it is never the latest run. Two of one execution have the
        -- same only if two thousand million runs are between them; then the call is refused.
        SELECT k.run_id, k.parent_run, v_now, k.priority, CASE WHEN k.kind = 'parallel' THEN -1 - k.run_id % 2147483647 ELSE 1 END,
               k.execution_id, k.task, k.queue, k.tags::jsonb, k.input, k.nonce
        FROM call AS k ORDER BY k.execution_id COLLATE "C", k.place
        ON CONFLICT (execution_id, run) DO NOTHING
        RETURNING r.run_id
    ), busy AS (
        -- Race: one of the lane ends beside this. It needs the parent's lock, which is held here: it was before, and is not
        -- counted, or comes later, and lets one in that is held back here.
        SELECT l.parent_run, l.lane, b.count
        FROM (SELECT DISTINCT k.parent_run, k.lane FROM call AS k WHERE k.lane IS NOT NULL) AS l
        CROSS JOIN LATERAL (
            SELECT count(*) FROM {schema}.active AS a
            WHERE a.parent_run = l.parent_run AND a.lane = l.lane AND NOT a.held OFFSET 0
        ) AS b
    ), met AS (
        SELECT k.*, added.run_id AS child, k.status = 'pending' AS awaited,
               k.lane IS NOT NULL
                   AND busy.count + row_number() OVER (PARTITION BY k.parent_run, k.lane ORDER BY k.place) > k.at_once AS held,
               least(k.latest, CASE WHEN k.timeout IS NOT NULL
                                    THEN greatest(0, least(k.first_at + k.timeout, p_forever)) END) AS deadline
        FROM call AS k LEFT JOIN added ON added.run_id = k.run_id
        LEFT JOIN busy ON busy.parent_run = k.parent_run AND busy.lane = k.lane
    ), queued AS (
        INSERT INTO {schema}.active (
            run_id, wake_at, deadline, bytes, priority, queue, task, version, parent_run, parent_name, parent_ordinal, lane, held)
        SELECT m.child, CASE WHEN NOT m.held THEN least(m.first_at, m.deadline) END, m.deadline, octet_length(m.input), m.priority,
               m.queue, m.task, m.version,
               CASE WHEN m.awaited THEN m.parent_run END, CASE WHEN m.awaited THEN m.name END,
               CASE WHEN m.awaited THEN m.ordinal END, m.lane, m.held
        FROM met AS m WHERE m.child IS NOT NULL
    )
    SELECT array_agg(m.place), array_agg(m.child) INTO v_places, v_children FROM met AS m;
    IF v_places IS NULL THEN RETURN; END IF;

    -- A later statement than the insert: an execution that somebody else created meanwhile is seen by it. A call whose
    -- execution_id is taken fails, as if its child had ended; a detached one only if the id belongs to another task.
    WITH call AS MATERIALIZED (
        SELECT u.*, v.child,
               CASE WHEN v.child IS NOT NULL THEN false WHEN u.status = 'pending' THEN true ELSE u.task <> (
                   SELECT r.task FROM {schema}.runs AS r
                   WHERE r.execution_id = u.execution_id ORDER BY r.run DESC LIMIT 1
               ) END AS refused
        FROM unnest(v_places, v_children) AS v(place, child)
        JOIN unnest(
            c_run, c_name, c_ordinal, c_kind, c_status, c_attempts, c_started_at, c_finished_at, c_deadline, c_worker,
            c_output, c_details, c_taken, n_execution_id, n_task) WITH ORDINALITY
        AS u(run_id, name, ordinal, kind, status, attempts, started_at, finished_at, deadline, worker_id,
             output, details, taken, execution_id, task, place) ON u.place = v.place
    ), counted AS (
        SELECT k.run_id, count(*) FILTER (WHERE k.child IS NOT NULL AND k.status = 'pending')::integer AS started,
               count(*) FILTER (WHERE k.refused)::integer AS refused
        FROM call AS k GROUP BY k.run_id
    ), written AS (
        INSERT INTO {schema}.steps (
            run_id, name, ordinal, kind, status, attempts, started_at, finished_at, deadline, event_seq, worker_id, output,
            error, details)
        SELECT k.run_id, k.name, k.ordinal, k.kind, CASE WHEN k.refused THEN 'failed' ELSE k.status END, k.attempts,
               k.started_at, CASE WHEN k.refused THEN v_now ELSE k.finished_at END, k.deadline,
               CASE WHEN k.refused
                    THEN a.signal_seq + count(*) FILTER (WHERE k.refused) OVER (PARTITION BY k.run_id ORDER BY k.place) END,
               k.worker_id, CASE WHEN NOT k.refused THEN k.output END, CASE WHEN k.refused THEN k.taken END, k.details
        FROM call AS k JOIN {schema}.active AS a ON a.run_id = k.run_id AND a.run_id = ANY (p_runs)
    ), raised AS (
        UPDATE {schema}.active AS a SET
            open_children = a.open_children + n.started,
            signal_seq = a.signal_seq + n.refused
        FROM counted AS n WHERE a.run_id = n.run_id AND a.run_id = ANY (p_runs)
    )
    SELECT coalesce(array_agg(n.run_id) FILTER (WHERE n.refused > 0), '{}') INTO o_signals FROM counted AS n;
    o_ready := EXISTS (SELECT 1 FROM unnest(v_children) AS v(child) WHERE v.child IS NOT NULL);
END $$;

-- --- ending runs ----------------------------------------------------------------------------------------------------

-- Moves runs from active to results, answers the calls that await them, and counts their parents down. The caller has locked
-- all of their rows and those of their parents, and has checked that they may end so. p_children: any of them may be a child.
-- o_ready: a parent has become claimable; NULL: places were given back, and whether others wait for them tells only a look after the
-- commit, see awaited_v1; o_signals: parents that somebody holds, who has to be told; o_finished: the
-- executions that ended; o_orphaned: runs that ended with open children, which the caller has to cancel.
CREATE FUNCTION {schema}.end_runs_v1(
    p_runs bigint[], p_statuses text[], p_outputs bytea[], p_errors bytea[], p_children boolean, p_now bigint,
    OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[], OUT o_orphaned bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_parents bigint[];
    v_children integer[]; v_bytes bigint[];
    v_parts bigint[];              -- those that are parts: of them nothing stays but the row of the call
    v_fathers bigint[]; v_lanes text[]; v_left integer[];  -- lanes, and how many leave each
    v_next bigint[];
    v_places text[];               -- queues with limits of which places are given back
BEGIN
    o_ready := false; o_signals := '{}';
    IF p_children THEN
        SELECT array_agg(DISTINCT a.parent_run) INTO v_parents
        FROM {schema}.active AS a WHERE a.run_id = ANY (p_runs) AND a.parent_run IS NOT NULL;
    END IF;
    IF v_parents IS NOT NULL THEN
        SELECT array_agg(r.run_id) INTO v_parts FROM {schema}.runs AS r WHERE r.run_id = ANY (p_runs) AND r.run < 0;
        SELECT array_agg(l.parent_run), array_agg(l.lane), array_agg(l.count) INTO v_fathers, v_lanes, v_left
        FROM (
            SELECT a.parent_run, a.lane, count(*)::integer FROM {schema}.active AS a
            WHERE a.run_id = ANY (p_runs) AND a.lane IS NOT NULL AND NOT a.held GROUP BY a.parent_run, a.lane
        ) AS l;
        -- What a parent's call gets of its child: the output or the error, and the parent's next signal. It is copied, so that
        -- a child can be purged as soon as it has ended. It is an insert that meets its row, and not an update: that would be
        -- a join, and might read all calls of the parent for the few that are answered.
        INSERT INTO {schema}.steps AS t (
            run_id, name, ordinal, kind, status, attempts, started_at, worker_id, finished_at, event_seq, output, error)
        SELECT c.parent_run, c.parent_name, c.parent_ordinal, s.kind,
               CASE WHEN f.status = 'completed' THEN 'completed' ELSE 'failed' END,
               -- Of a part the row tells when and by whom it was run, and how often.
               CASE WHEN s.kind <> 'parallel' THEN s.attempts ELSE
                   (f.status = 'completed')::integer
                   + (SELECT count(*) FROM {schema}.attempts AS y WHERE y.run_id = c.run_id)::integer END,
               CASE WHEN s.kind <> 'parallel' THEN s.started_at ELSE coalesce(c.started_at, s.started_at) END,
               CASE WHEN s.kind <> 'parallel' THEN s.worker_id ELSE c.worker_id END, p_now,
               p.signal_seq + row_number() OVER (PARTITION BY c.parent_run ORDER BY c.run_id), f.output, f.error
        FROM unnest(p_runs, p_statuses, p_outputs, p_errors) AS f(run_id, status, output, error)
        JOIN {schema}.active AS c ON c.run_id = f.run_id AND c.run_id = ANY (p_runs)
        JOIN {schema}.active AS p ON p.run_id = c.parent_run AND p.run_id = ANY (v_parents)
        CROSS JOIN LATERAL (
            SELECT x.kind, x.attempts, x.started_at, x.worker_id FROM {schema}.steps AS x
            WHERE x.run_id = c.parent_run AND x.name = c.parent_name AND x.ordinal = c.parent_ordinal
              AND x.status = 'pending' OFFSET 0
        ) AS s
        ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
            status = excluded.status, attempts = excluded.attempts, started_at = excluded.started_at,
            worker_id = excluded.worker_id, finished_at = excluded.finished_at, event_seq = excluded.event_seq,
            output = excluded.output, error = excluded.error
        WHERE t.status = 'pending';
    END IF;

    WITH gone AS (
        DELETE FROM {schema}.active AS a
        USING unnest(p_runs, p_statuses, p_outputs, p_errors) AS f(run_id, status, output, error)
        WHERE a.run_id = f.run_id AND a.run_id = ANY (p_runs)
        RETURNING a.run_id, a.parent_run, a.started_at, a.deadline, a.attempt, a.version, a.open_children, a.place, a.worker_id,
                  a.task, a.queue, f.status, f.output, f.error
    ), kept AS (
        INSERT INTO {schema}.results
            (run_id, started_at, finished_at, deadline, attempt, status, version, output, error)
        SELECT g.run_id, g.started_at, p_now, g.deadline, g.attempt, g.status, g.version, g.output, g.error FROM gone AS g
        WHERE v_parts IS NULL OR g.run_id NOT IN (SELECT unnest(v_parts))
    ), tallied AS (
        -- What is held has no queue of its own.
        INSERT INTO {schema}.tally_changes (task, queue, status, change)
        SELECT o.task, o.queue, o.status, count(*) FROM (
            SELECT g.task, g.status, CASE WHEN g.queue <> '' THEN g.queue ELSE (
                SELECT r.queue FROM {schema}.runs AS r WHERE r.run_id = g.run_id) END AS queue
            FROM gone AS g WHERE v_parts IS NULL OR g.run_id NOT IN (SELECT unnest(v_parts))
        ) AS o GROUP BY o.task, o.queue, o.status
    ), counted AS (
        SELECT g.parent_run, count(*)::integer AS children, coalesce(sum(octet_length(g.output)), 0) AS bytes FROM gone AS g
        WHERE g.parent_run IS NOT NULL GROUP BY g.parent_run
    )
    SELECT array_agg(c.parent_run), array_agg(c.children), array_agg(c.bytes),
           (SELECT array_agg(g.run_id) FROM gone AS g WHERE g.open_children > 0),
           (SELECT array_agg(g.place) FROM gone AS g WHERE g.place IS NOT NULL AND g.worker_id IS NOT NULL)
      INTO v_parents, v_children, v_bytes, o_orphaned, v_places
      FROM counted AS c;

    -- A parent that waits for its children is woken once: by the one that leaves no more open than it waits for. Races: the
    -- last two children end at once, or the last one beside the parent's own suspension. All hold the parent's row lock: the
    -- second child finds the count that the first has left; a suspension that is first is seen by its waits, and woken here;
    -- one that is later finds the count, and is refused.
    IF v_parents IS NOT NULL THEN
        WITH told AS (
            UPDATE {schema}.active AS a SET
                open_children = a.open_children - p.children,
                signal_seq = a.signal_seq + p.children,
                bytes = a.bytes + p.bytes,
                wake_at = CASE
                    WHEN a.worker_id IS NULL AND NOT a.quarantined AND a.waits & 4 <> 0
                         AND a.open_children - p.children <= a.children_left
                    THEN least(p_now, a.wake_at) ELSE a.wake_at END
            FROM unnest(v_parents, v_children, v_bytes) AS p(run_id, children, bytes)
            WHERE a.run_id = p.run_id AND a.run_id = ANY (v_parents)
            RETURNING a.run_id, a.worker_id, a.wake_at
        )
        SELECT coalesce(bool_or(told.wake_at <= p_now), false),
               coalesce(array_agg(told.run_id) FILTER (WHERE told.worker_id IS NOT NULL), '{}')
          INTO o_ready, o_signals FROM told;
    END IF;

    -- What the run still waited for stays in its history, without a timer, with the time at which nobody waited any more.
    UPDATE {schema}.steps AS s SET finished_at = p_now, wake_at = NULL
    WHERE s.run_id = ANY (p_runs) AND s.status = 'pending' AND s.finished_at IS NULL;

    IF v_lanes IS NOT NULL THEN
        SELECT array_agg(h.run_id) INTO v_next
        FROM unnest(v_fathers, v_lanes, v_left) AS l(parent_run, lane, count)
        CROSS JOIN LATERAL (
            SELECT a.run_id FROM {schema}.active AS a
            WHERE a.parent_run = l.parent_run AND a.lane = l.lane AND a.held ORDER BY a.run_id LIMIT l.count
        ) AS h;
        IF v_next IS NOT NULL THEN
            -- Nobody else takes a lock on one that is held back without having its parent's.
            UPDATE {schema}.active AS a SET held = false, wake_at = least(p_now, a.deadline) WHERE a.run_id = ANY (v_next);
            o_ready := true;
        END IF;
    END IF;
    IF v_parts IS NOT NULL THEN
        INSERT INTO {schema}.attempts (
            run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
        SELECT r.parent_run, y.name, y.ordinal, y.attempt, y.started_at, y.finished_at, y.worker_id, y.error, y.handler_attempt
        FROM {schema}.attempts AS y JOIN {schema}.runs AS r ON r.run_id = y.run_id AND r.run_id = ANY (v_parts)
        WHERE y.run_id = ANY (v_parts)
        ON CONFLICT DO NOTHING;
        DELETE FROM {schema}.attempts AS y WHERE y.run_id = ANY (v_parts);
        DELETE FROM {schema}.steps AS s WHERE s.run_id = ANY (v_parts);
        DELETE FROM {schema}.runs AS r WHERE r.run_id = ANY (v_parts);
    END IF;

    IF v_places IS NOT NULL AND NOT o_ready THEN
        o_ready := nullif({schema}.awaited_v1(v_places), false);
    END IF;
    SELECT coalesce(array_agg(r.execution_id), '{}') INTO o_finished
    FROM {schema}.runs AS r WHERE r.run_id = ANY (p_runs);
END $$;

-- The failure of an execution that was cancelled. p_failure is all of it but for what is said here.
CREATE FUNCTION {schema}.cancelled_v1(p_failure jsonb, p_execution_id text, p_reason text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT convert_to(
        jsonb_set(
            jsonb_set(p_failure, '{reason}', coalesce(to_jsonb(p_reason), 'null')), '{error,message}',
            to_jsonb('execution ''' || p_execution_id || ''' was cancelled' || coalesce(': ' || nullif(p_reason, ''), ''))
        )::text, 'UTF8')
$$;

-- Cancels active runs and their open children, and theirs: ends what no handler has to hear of, marks the rest. The caller
-- has locked all of them and their parents, by lock_v1.
CREATE FUNCTION {schema}.cancel_runs_v1(
    p_runs bigint[], p_reason text, p_now bigint, p_failure jsonb,
    OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_runs bigint[] := p_runs; v_reasons text[] := array_fill(p_reason, ARRAY[cardinality(p_runs)]);
    v_ends bigint[]; v_errors bytea[]; v_orphaned bigint[];
    v_above bigint[]; v_given text[];          -- runs whose children are next, and the reasons these are given
    v_ended record;
    v_ready boolean; v_signals bigint[];
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    WHILE v_runs IS NOT NULL LOOP
        -- No handler has to hear of it; that of a quarantined run must not: it kills workers.
        SELECT array_agg(a.run_id), array_agg({schema}.cancelled_v1(p_failure, r.execution_id, c.reason))
          INTO v_ends, v_errors
          FROM unnest(v_runs, v_reasons) AS c(run_id, reason)
          JOIN {schema}.active AS a ON a.run_id = c.run_id AND a.run_id = ANY (v_runs)
          JOIN {schema}.runs AS r ON r.run_id = c.run_id AND r.run_id = ANY (v_runs)
         WHERE a.worker_id IS NULL AND (a.epoch = 0 OR NOT a.cleanup OR a.quarantined);
        v_orphaned := NULL;
        IF v_ends IS NOT NULL THEN
            v_ended := {schema}.end_runs_v1(
                v_ends, array_fill('cancelled'::text, ARRAY[cardinality(v_ends)]),
                array_fill(NULL::bytea, ARRAY[cardinality(v_ends)]), v_errors, true, p_now);
            o_ready := o_ready OR v_ended.o_ready;
            o_signals := o_signals || v_ended.o_signals;
            o_finished := o_finished || v_ended.o_finished;
            v_orphaned := v_ended.o_orphaned;
        END IF;

        -- Race: a completion. Both hold the row's lock: if that is first, the run is not here any more; if it is later, it
        -- finds cancel_requested, and is refused. A run that was marked before keeps what it has started since: that cleans up.
        WITH marked AS (
            UPDATE {schema}.active AS a SET
                cancel_requested = true,
                cancel_reason = c.reason,
                signal_seq = a.signal_seq + 1,
                wake_at = CASE WHEN a.worker_id IS NULL THEN least(p_now, a.wake_at) END,
                -- It gets through pauses of its execution: only rules for undos, and for the whole task, hold what it has to clean up.
                queue = CASE WHEN a.queue = '' THEN (SELECT r.queue FROM {schema}.runs AS r WHERE r.run_id = a.run_id) ELSE a.queue END,
                held_by = NULL,
                held_at = NULL
            FROM unnest(v_runs, v_reasons) AS c(run_id, reason)
            WHERE a.run_id = c.run_id AND a.run_id = ANY (v_runs) AND NOT a.cancel_requested
            RETURNING a.run_id, a.worker_id, a.open_children, c.reason
        )
        SELECT coalesce(bool_or(m.worker_id IS NULL), false),
               coalesce(array_agg(m.run_id) FILTER (WHERE m.worker_id IS NOT NULL), '{}'),
               array_agg(m.run_id) FILTER (WHERE m.open_children > 0),
               array_agg(m.reason) FILTER (WHERE m.open_children > 0)
          INTO v_ready, v_signals, v_above, v_given
          FROM marked AS m;
        o_ready := o_ready OR v_ready;
        o_signals := o_signals || v_signals;

        IF v_orphaned IS NOT NULL THEN
            v_above := v_above || v_orphaned;
            v_given := v_given || array_fill('its parent has ended'::text, ARRAY[cardinality(v_orphaned)]);
        END IF;
        SELECT array_agg(c.run_id), array_agg(m.reason) INTO v_runs, v_reasons
        FROM unnest(v_above, v_given) AS m(run_id, reason)
        JOIN {schema}.active AS c ON c.parent_run = m.run_id AND c.parent_run = ANY (v_above);
    END LOOP;
END $$;

-- o_outcome: 'missing', 'finished' (too late), 'accepted'. o_ready: something became claimable; o_signals: runs that somebody
-- holds, who has to be told; o_finished: the executions that this call has ended.
CREATE FUNCTION {schema}.cancel_v1(
    p_execution_id text, p_reason text, p_failure jsonb,
    OUT o_now bigint, OUT o_outcome text, OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run bigint;
    v_cancelled record;
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    SELECT r.run_id INTO v_run FROM {schema}.runs AS r
    WHERE r.execution_id = p_execution_id ORDER BY r.run DESC LIMIT 1;
    IF v_run IS NULL THEN
        o_outcome := 'missing'; o_now := {schema}.now_v1();
        RETURN;
    END IF;
    PERFORM {schema}.lock_v1(NULL, ARRAY[v_run], ARRAY[0], ARRAY[v_run], false);
    o_now := {schema}.now_v1();
    IF NOT EXISTS (SELECT 1 FROM {schema}.active AS a WHERE a.run_id = v_run) THEN
        o_outcome := 'finished';
        RETURN;
    END IF;
    v_cancelled := {schema}.cancel_runs_v1(ARRAY[v_run], p_reason, o_now, p_failure);
    o_ready := v_cancelled.o_ready; o_signals := v_cancelled.o_signals; o_finished := v_cancelled.o_finished;
    o_outcome := 'accepted';
END $$;

-- Cancels the open children that calls of a run have started. Nothing is done when the run is not this worker's any more.
CREATE FUNCTION {schema}.cancel_calls_v1(
    p_worker bigint, p_run bigint, p_epoch integer, p_names text[], p_ordinals integer[], p_reason text, p_failure jsonb,
    OUT o_now bigint, OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_held bigint[];
    v_children bigint[];
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    SELECT array_agg(c.run_id) INTO v_children
    FROM unnest(p_names, p_ordinals) AS k(name, ordinal)
    JOIN {schema}.active AS c ON c.parent_name = k.name AND c.parent_ordinal = k.ordinal AND c.parent_run = p_run;
    IF v_children IS NOT NULL THEN
        SELECT l.o_held INTO v_held FROM {schema}.lock_v1(
            p_worker, p_run || v_children, p_epoch || array_fill(-1, ARRAY[cardinality(v_children)]), v_children, false) AS l;
        -- Of these some may have ended before the lock was there: they are not found any more.
        o_now := {schema}.now_v1();
        IF p_run = ANY (v_held) THEN
            SELECT c.o_ready, c.o_signals, c.o_finished INTO o_ready, o_signals, o_finished
            FROM {schema}.cancel_runs_v1(v_children, p_reason, o_now, p_failure) AS c;
        END IF;
    END IF;
    o_now := {schema}.now_v1();
END $$;

-- Gives a run up for good, until somebody resumes it: quarantines it, with p_error to be seen, if the worker holds it. But a
-- cancellation that was accepted is a promise: then it ends as cancelled, and no handler of it runs again. Waits a moment for
-- locks and no more: whoever calls it comes again.
CREATE FUNCTION {schema}.park_v1(
    p_worker bigint, p_run bigint, p_epoch integer, p_error bytea, p_failure jsonb,
    OUT o_now bigint, OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_cancelled boolean; v_reason text;
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    PERFORM {schema}.patience_v1(500);
    PERFORM {schema}.lock_v1(NULL, ARRAY[p_run], ARRAY[0], ARRAY[p_run], false);
    o_now := {schema}.now_v1();
    UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = NULL, quarantined = true, error = p_error
    WHERE a.run_id = p_run AND a.worker_id = p_worker AND a.epoch = p_epoch
    RETURNING a.cancel_requested, a.cancel_reason INTO v_cancelled, v_reason;
    IF v_cancelled THEN
        SELECT c.o_ready, c.o_signals, c.o_finished INTO o_ready, o_signals, o_finished
        FROM {schema}.cancel_runs_v1(ARRAY[p_run], v_reason, o_now, p_failure) AS c;
    END IF;
END $$;

-- --- flushing -------------------------------------------------------------------------------------------------------

-- The facts of any number of runs, in one commit; where there are children, start_children_v1 comes before. p_runs names each
-- run once, with the epoch of its facts; s_, a_, b_, p_, r_, d_, f_ and u_ are steps, attempts, details (beats), published
-- values, retries, the rows that these drop, finishes and suspensions. Each is a statement of its own: parts of one statement
-- that touch one row do not see each other. p_failure is for children that a finish cancels: see cancelled_v1. p_patience: see
-- patience_v1. l_: bytes of large results, by run. p_busy: runs of which nothing may be written, as somebody else has them locked; o_busy: these, and more of them.
-- o_ready: as that of end_runs_v1.
CREATE FUNCTION {schema}.flush_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[],
    s_run bigint[], s_name text[], s_ordinal integer[], s_kind text[], s_status text[], s_attempts integer[],
    s_started_at bigint[], s_finished_at bigint[], s_wake_at bigint[], s_deadline bigint[], s_event_seq integer[],
    s_worker bigint[], s_output bytea[], s_error bytea[], s_details bytea[],
    a_run bigint[], a_name text[], a_ordinal integer[], a_attempt integer[], a_started_at bigint[],
    a_finished_at bigint[], a_worker bigint[], a_error bytea[], a_handler_attempt integer[],
    b_run bigint[], b_name text[], b_ordinal integer[], b_kind text[], b_attempts integer[], b_started_at bigint[],
    b_wake_at bigint[], b_deadline bigint[], b_worker bigint[], b_error bytea[], b_details bytea[],
    p_run bigint[], p_key text[], p_value bytea[], p_number bigint[],
    r_run bigint[], r_attempt integer[], d_run bigint[], d_name text[], d_ordinal integer[],
    f_run bigint[], f_status text[], f_output bytea[], f_error bytea[],
    u_run bigint[], u_wake_at bigint[], u_waits smallint[], u_seen integer[], u_cleanup boolean[], u_error bytea[],
    u_compensating boolean[], u_children_left integer[],
    p_failure jsonb, p_patience integer, l_run bigint[], l_bytes bigint[], p_busy bigint[],
    OUT o_now bigint, OUT o_lost bigint[], OUT o_refused bigint[], OUT o_cancelled bigint[], OUT o_ready boolean,
    OUT o_signals bigint[], OUT o_finished text[], OUT o_busy bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_nestloop = off SET enable_hashjoin = on SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_held bigint[];
    v_all boolean;                 -- nothing is lost: then no fact has to be looked up among those that are held
    v_ends bigint[]; v_statuses text[]; v_outputs bytea[]; v_errors bytea[];
    v_lock record; v_ended record; v_abandoned record;
    v_orphaned bigint[];
    v_forestalled bigint[];        -- runs that end in no other way than as cancelled
    v_begun bigint[];              -- runs that have begun the attempt that they are to begin
    v_parked bigint;
    v_places text[];
BEGIN
    -- Every lock of this call, and the fence.
    IF p_patience > 0 THEN
        PERFORM {schema}.patience_v1(p_patience);
    END IF;
    v_lock := {schema}.lock_v1(p_worker, p_runs, p_epochs, f_run, coalesce(p_patience = 0, false));
    v_held := v_lock.o_held; o_cancelled := v_lock.o_cancelled; o_busy := v_lock.o_busy;
    IF p_busy <> '{}' THEN
        o_busy := o_busy || p_busy;
        v_held := ARRAY(SELECT unnest(v_held) EXCEPT SELECT unnest(p_busy));
        o_cancelled := ARRAY(SELECT unnest(o_cancelled) EXCEPT SELECT unnest(p_busy));
    END IF;

    -- After the locks: nothing that is written now is older than what it follows.
    o_now := {schema}.now_v1();
    o_refused := '{}';
    o_lost := '{}';
    o_ready := false;
    o_signals := '{}';
    o_finished := '{}';
    v_all := cardinality(v_held) = cardinality(p_runs);
    IF NOT v_all THEN
        SELECT coalesce(array_agg(g.run_id), '{}') INTO o_lost
        FROM unnest(p_runs) AS g(run_id) WHERE g.run_id <> ALL (v_held || o_busy);
    END IF;

    IF cardinality(r_run) > 0 THEN
        -- Race: this flush was sent once more, since its answer was lost, and the first one is carried out after that, by a server
        -- process that stood still. What it says is known, and what has failed in the new attempt since is not to be dropped.
        v_begun := ARRAY(
            SELECT r.run_id FROM unnest(r_run, r_attempt) AS r(run_id, attempt)
            JOIN {schema}.active AS a ON a.run_id = r.run_id AND a.run_id = ANY (r_run) AND a.attempt >= r.attempt);
        IF v_begun <> '{}' THEN
            v_held := ARRAY(SELECT unnest(v_held) EXCEPT SELECT unnest(v_begun));
            v_all := false;
        END IF;
    END IF;

    IF cardinality(s_run) > 0 THEN
        INSERT INTO {schema}.steps AS t (
            run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq,
            worker_id, output, error, details)
        SELECT s.* FROM unnest(
            s_run, s_name, s_ordinal, s_kind, s_status, s_attempts, s_started_at, s_finished_at, s_wake_at, s_deadline,
            s_event_seq, s_worker, s_output, s_error, s_details)
        AS s(run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq,
             worker_id, output, error, details)
        WHERE v_all OR s.run_id = ANY (v_held)
        ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
            kind = excluded.kind, status = excluded.status, attempts = excluded.attempts,
            started_at = excluded.started_at, finished_at = excluded.finished_at, wake_at = excluded.wake_at,
            deadline = excluded.deadline, event_seq = excluded.event_seq, worker_id = excluded.worker_id,
            output = excluded.output, error = excluded.error, details = excluded.details
        WHERE t.status = 'pending';
    END IF;

    IF cardinality(l_run) > 0 THEN
        UPDATE {schema}.active AS a SET bytes = a.bytes + l.bytes FROM unnest(l_run, l_bytes) AS l(run_id, bytes)
        WHERE a.run_id = l.run_id AND a.run_id = ANY (l_run) AND (v_all OR l.run_id = ANY (v_held));
    END IF;

    IF cardinality(a_run) > 0 THEN
        INSERT INTO {schema}.attempts (
            run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
        SELECT a.* FROM unnest(
            a_run, a_name, a_ordinal, a_attempt, a_started_at, a_finished_at, a_worker, a_error, a_handler_attempt)
        AS a(run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
        WHERE v_all OR a.run_id = ANY (v_held)
        ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING;
    END IF;

    IF cardinality(b_run) > 0 THEN
        INSERT INTO {schema}.steps AS t (
            run_id, name, ordinal, kind, status, attempts, started_at, wake_at, deadline, worker_id, error, details)
        SELECT b.run_id, b.name, b.ordinal, b.kind, 'pending', b.attempts, b.started_at, b.wake_at, b.deadline,
               b.worker_id, b.error, b.details
        FROM unnest(
            b_run, b_name, b_ordinal, b_kind, b_attempts, b_started_at, b_wake_at, b_deadline, b_worker, b_error,
            b_details)
        AS b(run_id, name, ordinal, kind, attempts, started_at, wake_at, deadline, worker_id, error, details)
        WHERE v_all OR b.run_id = ANY (v_held)
        ON CONFLICT (run_id, name, ordinal) DO UPDATE SET details = excluded.details WHERE t.status = 'pending';
    END IF;

    IF cardinality(p_run) > 0 THEN
        -- The same race: an earlier value does not come after a later one.
        INSERT INTO {schema}.published AS t (run_id, number, key, value)
        SELECT p.run_id, p.number, p.key, p.value
        FROM unnest(p_run, p_key, p_value, p_number) AS p(run_id, key, value, number)
        WHERE v_all OR p.run_id = ANY (v_held)
        ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value, number = excluded.number
        WHERE t.number <= excluded.number;
    END IF;

    IF cardinality(r_run) > 0 THEN
        DELETE FROM {schema}.steps AS s
        WHERE s.run_id = ANY (r_run) AND s.status = 'failed' AND (v_all OR s.run_id = ANY (v_held));
        IF cardinality(d_run) > 0 THEN
            DELETE FROM {schema}.steps AS s USING unnest(d_run, d_name, d_ordinal) AS d(run_id, name, ordinal)
            WHERE s.run_id = d.run_id AND s.name = d.name AND s.ordinal = d.ordinal AND s.run_id = ANY (d_run)
              AND (v_all OR s.run_id = ANY (v_held));
        END IF;
        UPDATE {schema}.active AS a SET attempt = r.attempt FROM unnest(r_run, r_attempt) AS r(run_id, attempt)
        WHERE a.run_id = r.run_id AND a.run_id = ANY (r_run) AND (v_all OR r.run_id = ANY (v_held));
    END IF;

    IF cardinality(f_run) > 0 THEN
        -- A cancellation that was accepted lets only a finish as cancelled through. Race: the cancellation. Both hold the
        -- row's lock: if it is first, it is seen here; if it is later, it finds the run finished.
        v_forestalled := o_cancelled;
        IF v_forestalled <> '{}' THEN
            -- But a part whose step can be undone says that it is done: who undoes what a cancelled run has done must not miss it.
            v_forestalled := ARRAY(
                SELECT unnest(o_cancelled)
                EXCEPT
                SELECT f.run_id
                FROM unnest(f_run, f_status) AS f(run_id, status)
                JOIN {schema}.active AS a ON a.run_id = f.run_id AND a.run_id = ANY (f_run)
                CROSS JOIN LATERAL (
                    SELECT 1 FROM {schema}.steps AS x
                    WHERE x.run_id = a.parent_run AND x.name = a.parent_name AND x.ordinal = a.parent_ordinal
                      AND x.kind = 'parallel' AND x.details IS NOT NULL OFFSET 0
                ) AS s
                WHERE f.status = 'completed');
        END IF;
        SELECT array_agg(f.run_id), array_agg(f.status), array_agg(f.output), array_agg(f.error)
          INTO v_ends, v_statuses, v_outputs, v_errors
          FROM unnest(f_run, f_status, f_output, f_error) AS f(run_id, status, output, error)
         WHERE (v_all OR f.run_id = ANY (v_held)) AND (f.status = 'cancelled' OR f.run_id <> ALL (v_forestalled));
        SELECT coalesce(array_agg(f.run_id), '{}') INTO o_refused
          FROM unnest(f_run, f_status) AS f(run_id, status)
         WHERE f.status <> 'cancelled' AND f.run_id = ANY (v_forestalled);
        IF v_ends IS NOT NULL THEN
            v_ended := {schema}.end_runs_v1(v_ends, v_statuses, v_outputs, v_errors, v_lock.o_children, o_now);
            o_ready := v_ended.o_ready; o_signals := v_ended.o_signals; o_finished := v_ended.o_finished;
            IF v_ended.o_orphaned IS NOT NULL THEN
                SELECT array_agg(c.run_id) INTO v_orphaned
                FROM {schema}.active AS c WHERE c.parent_run = ANY (v_ended.o_orphaned);
            END IF;
            IF v_orphaned IS NOT NULL THEN
                v_abandoned := {schema}.cancel_runs_v1(v_orphaned, 'its parent has ended', o_now, p_failure);
                o_ready := o_ready OR v_abandoned.o_ready;
                o_signals := o_signals || v_abandoned.o_signals;
                o_finished := o_finished || v_abandoned.o_finished;
            END IF;
        END IF;
    END IF;

    IF cardinality(u_run) > 0 THEN
        -- Refused when what the run would wait for has happened already; see the races at offer_v1,
        -- cancel_runs_v1, end_runs_v1.
        UPDATE {schema}.active AS a SET
            worker_id = NULL,
            wake_at = CASE WHEN u.compensating THEN u.wake_at ELSE least(u.wake_at, a.deadline) END,
            waits = u.waits,
            children_left = u.children_left,
            cleanup = u.cleanup,
            error = u.error
        FROM unnest(u_run, u_wake_at, u_waits, u_seen, u_cleanup, u_error, u_compensating, u_children_left)
            AS u(run_id, wake_at, waits, seen, cleanup, error, compensating, children_left)
        WHERE a.run_id = u.run_id AND a.run_id = ANY (u_run) AND (v_all OR u.run_id = ANY (v_held))
          AND (NOT a.cancel_requested OR u.compensating)
          AND (u.waits & 2 = 0 OR a.signal_seq = u.seen)
          AND (u.waits & 4 = 0 OR a.open_children > u.children_left);
        GET DIAGNOSTICS v_parked = ROW_COUNT;
        SELECT array_agg(a.place) INTO v_places FROM {schema}.active AS a WHERE a.run_id = ANY (u_run) AND a.place IS NOT NULL;
        IF v_places IS NOT NULL AND NOT o_ready THEN
            o_ready := nullif({schema}.awaited_v1(v_places), false);
        END IF;
        IF v_parked < cardinality(u_run) THEN
            SELECT o_refused || coalesce(array_agg(a.run_id), '{}') INTO o_refused
            FROM {schema}.active AS a
            WHERE a.run_id = ANY (u_run) AND a.worker_id = p_worker AND a.run_id = ANY (v_held);
        END IF;
    END IF;
END $$;
