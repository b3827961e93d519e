-- Pauses: rules by execution, task and step (a pattern) that keep what they match from starting.
CREATE TABLE {schema}.pauses (
    rule_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at   bigint NOT NULL,
    expires_at   bigint,
    nonce        bigint NOT NULL UNIQUE,          -- of the call that made it, which may be repeated
    execution_id text   COLLATE "C",
    task         text   COLLATE "C",
    step         text,
    reason       text
);
-- The rules of an execution; and those of none in particular, which every claim reads.
CREATE INDEX pauses_execution ON {schema}.pauses (execution_id);
CREATE INDEX pauses_expiry ON {schema}.pauses (expires_at) WHERE expires_at IS NOT NULL;

-- A run that is held by a rule of its execution, or at a step, has an empty queue, which no worker works on and no start can
-- name: so it is in nobody's way, and whatever else happens to it needs to know nothing of pauses. Its own queue is in `runs`.
ALTER TABLE {schema}.active ADD COLUMN held_by bigint, ADD COLUMN held_at bigint;
CREATE INDEX active_held ON {schema}.active (held_by) WHERE held_by IS NOT NULL;

-- Whoever needs both locks a rule before the runs that it holds.

-- o_outcome: 'missing', 'finished', 'made'.
CREATE FUNCTION {schema}.pause_v1(
    p_execution_id text, p_task text, p_step text, p_reason text, p_expires_at bigint, p_nonce bigint,
    OUT o_now bigint, OUT o_outcome text, OUT o_rule bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run bigint;
BEGIN
    o_now := {schema}.now_v1();
    o_outcome := 'made';
    SELECT p.rule_id INTO o_rule FROM {schema}.pauses AS p WHERE p.nonce = p_nonce;
    IF o_rule IS NOT NULL THEN RETURN; END IF;
    IF p_execution_id IS NOT NULL THEN
        LOOP
            SELECT r.run_id INTO v_run FROM {schema}.runs AS r
            WHERE r.execution_id = p_execution_id ORDER BY r.run DESC LIMIT 1;
            IF v_run IS NULL THEN
                o_outcome := 'missing';
                RETURN;
            END IF;
            PERFORM 1 FROM {schema}.active AS a WHERE a.run_id = v_run FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            -- Race: while this waited for the lock the run has gone on as the next one. Then the rule is for that.
            IF NOT EXISTS (
                SELECT 1 FROM {schema}.runs AS r WHERE r.execution_id = p_execution_id AND r.run_id > v_run
            ) THEN
                o_outcome := 'finished';
                RETURN;
            END IF;
        END LOOP;
    END IF;
    o_now := {schema}.now_v1();
    INSERT INTO {schema}.pauses AS p (created_at, expires_at, nonce, execution_id, task, step, reason)
    VALUES (o_now, p_expires_at, p_nonce, p_execution_id, p_task, p_step, p_reason)
    ON CONFLICT (nonce) DO UPDATE SET nonce = excluded.nonce
    RETURNING p.rule_id INTO o_rule;
    IF v_run IS NOT NULL AND p_step IS NULL THEN
        -- The run goes on to be whosever it is, and finishes what it does; it is not claimed again. That a rule for a step holds a call
        -- of it is forgotten here, so it is due when this one ends, and looks again.
        UPDATE {schema}.active AS a SET
            queue = '', held_by = o_rule, held_at = o_now,
            wake_at = CASE WHEN a.worker_id IS NULL AND a.held_by IS NOT NULL AND NOT a.quarantined THEN o_now ELSE a.wake_at END
        WHERE a.run_id = v_run AND a.queue <> '' AND (p_task IS NULL OR a.task = p_task) AND NOT a.cancel_requested;
    END IF;
END $$;

-- A run has been added to an execution: a rule that holds the execution holds it.
CREATE FUNCTION {schema}.hold_next_v1(p_run bigint, p_execution_id text, p_now bigint) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- Locked, so that whoever ends the rule finds the run or is found by it.
    UPDATE {schema}.active AS a SET queue = '', held_by = p.rule_id, held_at = p_now
    FROM (
        SELECT x.rule_id, x.task FROM {schema}.pauses AS x
        WHERE x.execution_id = p_execution_id AND x.step IS NULL ORDER BY x.rule_id FOR KEY SHARE
    ) AS p
    WHERE a.run_id = p_run AND (p.task IS NULL OR p.task = a.task);
END $$;

-- Ends rules; answers how many there were. Of the time that several rules have in common each run gets back every moment once: a rule
-- that ends gives back what was before the begin of those for the task that still hold it, and these give back the rest.
CREATE FUNCTION {schema}.lift_v1(p_rules bigint[]) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now bigint := {schema}.now_v1();
    v_rules bigint[];
    v_tasks text[]; v_since bigint[];   -- tasks that a rule has held as a whole
    v_until bigint;
    v_locked bigint[];
    v_forever CONSTANT bigint := 253402300799999999;  -- no time is later; a NULL deadline has to stay one, so least() is not for it
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.pauses AS p WHERE p.rule_id = ANY (p_rules) RETURNING p.*
    )
    SELECT array_agg(g.rule_id),
           (SELECT array_agg(t.task ORDER BY t.task) FROM (
                SELECT DISTINCT h.task FROM gone AS h WHERE h.execution_id IS NULL AND h.step IS NULL) AS t),
           (SELECT array_agg(t.since ORDER BY t.task) FROM (
                SELECT h.task, min(h.created_at) AS since FROM gone AS h
                WHERE h.execution_id IS NULL AND h.step IS NULL GROUP BY h.task) AS t)
      INTO v_rules, v_tasks, v_since FROM gone AS g;
    IF v_rules IS NULL THEN RETURN 0; END IF;

    -- Before the others: as long as a run is held by a rule of its execution, its row tells since when.
    FOR v_place IN 1 .. coalesce(cardinality(v_tasks), 0) LOOP
        SELECT least(v_now, min(p.created_at)) INTO v_until FROM {schema}.pauses AS p
        WHERE p.task = v_tasks[v_place] AND p.execution_id IS NULL AND p.step IS NULL;
        PERFORM 1 FROM {schema}.active AS a
        WHERE a.task = v_tasks[v_place] AND (a.deadline IS NOT NULL OR (a.epoch = 0 AND a.wake_at < v_now))
        ORDER BY a.run_id FOR NO KEY UPDATE;
        UPDATE {schema}.active AS a SET
            deadline = CASE WHEN a.deadline IS NOT NULL THEN least(a.deadline + greatest(0,
                least(v_until, CASE WHEN a.queue = '' THEN a.held_at END)
                - CASE WHEN r.run < 0 THEN v_since[v_place]
                       ELSE greatest(v_since[v_place], coalesce(r.alive_since, r.created_at)) END), v_forever) END,
            wake_at = CASE WHEN a.epoch = 0 AND a.wake_at < v_now THEN v_now ELSE a.wake_at END
        FROM {schema}.runs AS r
        WHERE r.run_id = a.run_id AND a.task = v_tasks[v_place]
          AND (a.deadline IS NOT NULL OR (a.epoch = 0 AND a.wake_at < v_now));
    END LOOP;

    -- What is still held by another rule of its execution goes over to that one. A deadline is as far away as it was; a run
    -- that never ran gets its deadline when it does, counted from when it could have.
    PERFORM 1 FROM {schema}.active AS a WHERE a.held_by = ANY (v_rules) ORDER BY a.run_id FOR NO KEY UPDATE;
    -- Parts have the deadline of the run that they are parts of, and keep it, whether they ran, were queued or were held as well. They
    -- are younger than that run, which starts no others as long as it is locked.
    v_locked := ARRAY(
        SELECT part.run_id FROM {schema}.active AS x
        JOIN {schema}.runs AS r ON r.run_id = x.run_id AND r.run > 0
        JOIN {schema}.runs AS part ON part.execution_id = r.execution_id AND part.run < 0
        WHERE x.held_by = ANY (v_rules));
    PERFORM 1 FROM {schema}.active AS a WHERE a.run_id = ANY (v_locked) ORDER BY a.run_id FOR NO KEY UPDATE;
    UPDATE {schema}.active AS a SET deadline = least(a.deadline + greatest(0, v_length.length), v_forever)
    FROM (
        SELECT part.run_id, least(v_now, (
            SELECT min(t.created_at) FROM {schema}.pauses AS t
            WHERE t.task = x.task AND t.execution_id IS NULL AND t.step IS NULL)) - x.held_at AS length
        FROM {schema}.active AS x
        JOIN {schema}.runs AS r ON r.run_id = x.run_id AND r.run > 0
        JOIN {schema}.runs AS part ON part.execution_id = r.execution_id AND part.run < 0
        WHERE x.held_by = ANY (v_rules) AND x.queue = '' AND NOT EXISTS (
            SELECT 1 FROM {schema}.pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task))
    ) AS v_length
    WHERE a.run_id = v_length.run_id AND a.run_id = ANY (v_locked) AND a.deadline IS NOT NULL;
    UPDATE {schema}.active AS a SET
        queue = CASE WHEN a.queue = '' AND held.other IS NULL THEN held.queue ELSE a.queue END,
        held_by = CASE WHEN a.queue = '' THEN held.other END,
        held_at = CASE WHEN held.other IS NOT NULL THEN a.held_at END,
        deadline = CASE WHEN a.queue <> '' OR held.other IS NOT NULL OR held.moved THEN a.deadline
                        WHEN a.deadline IS NOT NULL THEN least(a.deadline + greatest(0, held.length), v_forever) END,
        wake_at = CASE WHEN a.worker_id IS NOT NULL OR a.quarantined THEN NULL
                       WHEN a.queue <> '' OR (a.epoch = 0 AND a.wake_at < v_now) THEN v_now
                       ELSE a.wake_at END
    FROM (
        SELECT r.run_id, r.queue, (
            SELECT p.rule_id FROM {schema}.pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task) LIMIT 1
        ) AS other, r.run < 0 AND EXISTS (
            SELECT 1 FROM {schema}.active AS y
            WHERE y.run_id = x.parent_run AND y.queue = '' AND y.held_by = ANY (v_rules)) AS moved, least(v_now, (
            SELECT min(t.created_at) FROM {schema}.pauses AS t
            WHERE t.task = x.task AND t.execution_id IS NULL AND t.step IS NULL)) - x.held_at AS length
        FROM {schema}.active AS x JOIN {schema}.runs AS r ON r.run_id = x.run_id
        WHERE x.held_by = ANY (v_rules)
    ) AS held
    WHERE a.run_id = held.run_id;
    RETURN cardinality(v_rules);
END $$;

-- What a claim has to know of pauses: the tasks that none holds as a whole, with what belongs to them; the rules of no execution in
-- particular, whether there are others, and when the first of all ends. Those whose time is over end here. There are hardly ever any.
CREATE FUNCTION {schema}.heed_v1(
    p_tasks text[], p_versions text[], p_timeouts bigint[],
    OUT o_tasks text[], OUT o_versions text[], OUT o_timeouts bigint[], OUT o_rules text, OUT o_others boolean,
    OUT o_first_end bigint, OUT o_ended boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now bigint;
    v_expired bigint[]; v_since bigint[];
    v_wait text := current_setting('lock_timeout');
    v_blocked boolean := false;
BEGIN
    o_tasks := p_tasks; o_versions := p_versions; o_timeouts := p_timeouts; o_others := false; o_ended := false;
    IF NOT EXISTS (SELECT 1 FROM {schema}.pauses) THEN RETURN; END IF;
    v_now := {schema}.now_v1();
    SELECT array_agg(p.rule_id), array_agg(p.expires_at) INTO v_expired, v_since
    FROM (
        SELECT x.rule_id, x.expires_at FROM {schema}.pauses AS x WHERE x.expires_at <= v_now
        ORDER BY x.rule_id FOR UPDATE SKIP LOCKED
    ) AS p;
    -- Race: a user's transaction, open for long, has one of a rule's runs locked. A claim does not wait for it: the rule holds on, and
    -- is ended by a later claim. Those that only wait for other short calls are waited for; the longer a rule is late, the more
    -- patiently, but only for one such rule.
    FOR v_place IN 1 .. coalesce(cardinality(v_expired), 0) LOOP
        BEGIN
            PERFORM set_config('lock_timeout', CASE WHEN v_blocked THEN '1ms' ELSE
                least(200, 20 + ({schema}.now_v1() - v_since[v_place]) / 50000) || 'ms' END, true);
            PERFORM {schema}.lift_v1(v_expired[v_place:v_place]);
            o_ended := true;
        EXCEPTION WHEN lock_not_available THEN
            v_blocked := true;
        END;
    END LOOP;
    IF v_expired IS NOT NULL THEN
        PERFORM set_config('lock_timeout', v_wait, true);
    END IF;
    SELECT coalesce(array_agg(o.task ORDER BY o.place), '{}'), coalesce(array_agg(o.version ORDER BY o.place), '{}'),
           coalesce(array_agg(o.timeout ORDER BY o.place), '{}')
      INTO o_tasks, o_versions, o_timeouts
      FROM unnest(p_tasks, p_versions, p_timeouts) WITH ORDINALITY AS o(task, version, timeout, place)
     WHERE NOT EXISTS (
         SELECT 1 FROM {schema}.pauses AS p WHERE p.task = o.task AND p.execution_id IS NULL AND p.step IS NULL);
    SELECT coalesce(jsonb_agg({schema}.rule_v1(p) ORDER BY p.rule_id), '[]')::text INTO o_rules
    FROM {schema}.pauses AS p WHERE p.execution_id IS NULL;
    o_others := EXISTS (SELECT 1 FROM {schema}.pauses AS p WHERE p.execution_id IS NOT NULL);
    -- What could not be ended now is tried again, but not at once; what has come to its end only since then, at once.
    SELECT min(CASE WHEN p.expires_at <= v_now THEN {schema}.now_v1() + 100000 ELSE p.expires_at END) INTO o_first_end
    FROM {schema}.pauses AS p WHERE p.expires_at IS NOT NULL;
END $$;

-- The rules of the executions that a worker holds runs of: by these, of which there are no more than it has slots. VOLATILE, so that
-- after a claim in the same statement it sees what that has leased.
CREATE FUNCTION {schema}.rules_of_held_v1(p_worker bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(rules.rule), '[]')::text
        FROM (
            SELECT DISTINCT r.execution_id FROM {schema}.active AS a JOIN {schema}.runs AS r ON r.run_id = a.run_id
            WHERE a.worker_id = p_worker
        ) AS held
        CROSS JOIN LATERAL (
            SELECT {schema}.rule_v1(p) AS rule FROM {schema}.pauses AS p WHERE p.execution_id = held.execution_id OFFSET 0
        ) AS rules);
END $$;

CREATE FUNCTION {schema}.rule_v1(p {schema}.pauses) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_array(p.rule_id, p.execution_id, p.task, p.step, p.reason, p.created_at, p.expires_at)
$$;

CREATE FUNCTION {schema}.rules_v1(p_general boolean) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_agg({schema}.rule_v1(p) ORDER BY p.rule_id), '[]')::text FROM {schema}.pauses AS p
    WHERE NOT p_general OR p.execution_id IS NULL
$$;

-- Suspends runs of which a rule holds a call; after the flush that wrote their other facts, and as that suspends. p_patience: see
-- flush_v1. Without any, runs that somebody has locked, or whose rule is just being ended, are in o_busy, and nothing is written of them.
CREATE FUNCTION {schema}.hold_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[], p_wake_at bigint[], p_waits smallint[], p_seen integer[],
    p_cleanup boolean[], p_error bytea[], p_compensating boolean[], p_children_left integer[], p_rules bigint[],
    p_only_held boolean[], p_patience integer,
    OUT o_now bigint, OUT o_lost bigint[], OUT o_refused bigint[], OUT o_cancelled bigint[], OUT o_ready boolean,
    OUT o_busy bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_rules bigint[];
    v_held bigint[];
    v_busy bigint[] := '{}';       -- runs whose rule somebody else has locked
BEGIN
    -- Race: such a rule is just being ended. Either its end waits for this and finds the runs, or this waits for it and finds no
    -- rule: then nobody would wake the runs for it, and they are due at once.
    IF p_patience = 0 THEN
        -- Whoever ends a rule may wait for a user's transaction meanwhile.
        SELECT coalesce(array_agg(p.rule_id), '{}') INTO v_rules
        FROM (
            SELECT x.rule_id FROM {schema}.pauses AS x WHERE x.rule_id = ANY (p_rules)
            ORDER BY x.rule_id FOR KEY SHARE SKIP LOCKED
        ) AS p;
        SELECT coalesce(array_agg(g.run_id), '{}') INTO v_busy
        FROM unnest(p_runs, p_rules) AS g(run_id, rule)
        WHERE g.rule <> ALL (v_rules) AND EXISTS (SELECT 1 FROM {schema}.pauses AS x WHERE x.rule_id = g.rule);
    ELSE
        PERFORM {schema}.patience_v1(p_patience);
        SELECT coalesce(array_agg(p.rule_id), '{}') INTO v_rules
        FROM (
            SELECT x.rule_id FROM {schema}.pauses AS x WHERE x.rule_id = ANY (p_rules) ORDER BY x.rule_id FOR KEY SHARE
        ) AS p;
    END IF;
    SELECT l.o_held, l.o_cancelled, l.o_busy INTO v_held, o_cancelled, o_busy
    FROM {schema}.lock_v1(p_worker, p_runs, p_epochs, '{}', coalesce(p_patience = 0, false)) AS l;
    IF v_busy <> '{}' THEN
        o_busy := o_busy || v_busy;
        v_held := ARRAY(SELECT unnest(v_held) EXCEPT SELECT unnest(v_busy));
        o_cancelled := ARRAY(SELECT unnest(o_cancelled) EXCEPT SELECT unnest(v_busy));
    END IF;
    o_now := {schema}.now_v1();
    SELECT coalesce(array_agg(g.run_id), '{}') INTO o_lost
    FROM unnest(p_runs) AS g(run_id) WHERE g.run_id <> ALL (v_held || o_busy);
    WITH parked AS (
        UPDATE {schema}.active AS a SET
            worker_id = NULL,
            -- What a rule of the whole execution holds is due when that ends, whatever else holds it: then it looks again.
            wake_at = CASE WHEN u.rule IS NULL OR a.queue = '' THEN o_now WHEN u.compensating THEN u.wake_at
                           ELSE least(u.wake_at, a.deadline) END,
            waits = u.waits,
            children_left = u.children_left,
            cleanup = u.cleanup,
            error = u.error,
            held_by = CASE WHEN a.queue = '' THEN a.held_by ELSE u.rule END,
            held_at = CASE WHEN a.queue = '' THEN a.held_at WHEN u.rule IS NOT NULL THEN o_now END,
            queue = CASE WHEN u.only_held AND u.rule IS NOT NULL THEN '' ELSE a.queue END
        FROM (
            SELECT g.*, CASE WHEN g.wanted = ANY (v_rules) THEN g.wanted END AS rule
            FROM unnest(
                p_runs, p_wake_at, p_waits, p_seen, p_cleanup, p_error, p_compensating, p_children_left, p_rules, p_only_held)
            AS g(run_id, wake_at, waits, seen, cleanup, error, compensating, children_left, wanted, only_held)
        ) AS u
        WHERE a.run_id = u.run_id AND a.run_id = ANY (v_held)
          AND (NOT a.cancel_requested OR u.compensating)
          AND (u.waits & 2 = 0 OR a.signal_seq = u.seen)
          AND (u.waits & 4 = 0 OR a.open_children > u.children_left)
        RETURNING a.run_id, a.wake_at, a.place
    )
    -- NULL: as for a flush.
    SELECT CASE WHEN bool_or(parked.wake_at <= o_now) THEN true WHEN bool_or(parked.place IS NOT NULL) THEN NULL ELSE false END,
           coalesce((SELECT array_agg(h.run_id) FROM unnest(v_held) AS h(run_id)
                     WHERE h.run_id NOT IN (SELECT x.run_id FROM parked AS x)), '{}')
      INTO o_ready, o_refused FROM parked;
END $$;
