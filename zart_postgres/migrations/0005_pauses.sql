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
        -- The run goes on to be whosever it is, and finishes what it does; it is not claimed again.
        UPDATE {schema}.active AS a SET queue = '', held_by = o_rule, held_at = o_now
        WHERE a.run_id = v_run AND a.queue <> '' AND (p_task IS NULL OR a.task = p_task);
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

-- Ends rules; answers how many there were.
CREATE FUNCTION {schema}.lift_v1(p_rules bigint[]) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_now bigint := {schema}.now_v1();
    v_rules bigint[];
    v_tasks text[]; v_since bigint[];   -- those that hold whole tasks
    v_forever CONSTANT bigint := 253402300799999999;  -- no time is later; a NULL deadline has to stay one, so least() is not for it
BEGIN
    WITH gone AS (
        DELETE FROM {schema}.pauses AS p WHERE p.rule_id = ANY (p_rules) RETURNING p.*
    )
    SELECT array_agg(g.rule_id),
           array_agg(g.task) FILTER (WHERE g.execution_id IS NULL AND g.step IS NULL),
           array_agg(g.created_at) FILTER (WHERE g.execution_id IS NULL AND g.step IS NULL)
      INTO v_rules, v_tasks, v_since FROM gone AS g;
    IF v_rules IS NULL THEN RETURN 0; END IF;

    -- What is still held by another rule of its execution goes over to that one. A deadline is as far away as it was; a run
    -- that never ran gets its deadline when it does, counted from when it could have.
    PERFORM 1 FROM {schema}.active AS a WHERE a.held_by = ANY (v_rules) ORDER BY a.run_id FOR NO KEY UPDATE;
    UPDATE {schema}.active AS a SET
        queue = CASE WHEN a.queue = '' AND held.other IS NULL THEN held.queue ELSE a.queue END,
        held_by = CASE WHEN a.queue = '' THEN held.other END,
        held_at = CASE WHEN held.other IS NOT NULL THEN a.held_at END,
        deadline = CASE WHEN a.queue <> '' OR held.other IS NOT NULL THEN a.deadline
                        WHEN a.deadline IS NOT NULL THEN least(a.deadline + v_now - a.held_at, v_forever) END,
        wake_at = CASE WHEN a.worker_id IS NOT NULL OR a.quarantined THEN NULL
                       WHEN a.queue <> '' OR (a.epoch = 0 AND a.wake_at < v_now) THEN v_now
                       ELSE a.wake_at END
    FROM (
        SELECT r.run_id, r.queue, (
            SELECT p.rule_id FROM {schema}.pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task) LIMIT 1
        ) AS other
        FROM {schema}.active AS x JOIN {schema}.runs AS r ON r.run_id = x.run_id
        WHERE x.held_by = ANY (v_rules)
    ) AS held
    WHERE a.run_id = held.run_id;

    FOR v_place IN 1 .. coalesce(cardinality(v_tasks), 0) LOOP
        PERFORM 1 FROM {schema}.active AS a
        WHERE a.task = v_tasks[v_place] AND a.worker_id IS NULL AND a.queue <> ''
          AND (a.deadline IS NOT NULL OR (a.epoch = 0 AND a.wake_at < v_now))
        ORDER BY a.run_id FOR NO KEY UPDATE;
        UPDATE {schema}.active AS a SET
            deadline = CASE WHEN a.deadline IS NOT NULL
                            THEN least(a.deadline + v_now - greatest(v_since[v_place], r.created_at), v_forever) END,
            wake_at = CASE WHEN a.epoch = 0 AND a.wake_at < v_now THEN v_now ELSE a.wake_at END
        FROM {schema}.runs AS r
        WHERE r.run_id = a.run_id AND a.task = v_tasks[v_place] AND a.worker_id IS NULL AND a.queue <> ''
          AND (a.deadline IS NOT NULL OR (a.epoch = 0 AND a.wake_at < v_now));
    END LOOP;
    RETURN cardinality(v_rules);
END $$;

-- What a claim has to know of pauses: the tasks that none holds as a whole, with what belongs to them, and the rules. Those
-- whose time is over end here. There are hardly ever any.
CREATE FUNCTION {schema}.heed_v1(
    p_tasks text[], p_versions text[], p_timeouts bigint[],
    OUT o_tasks text[], OUT o_versions text[], OUT o_timeouts bigint[], OUT o_rules text)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_expired bigint[];
BEGIN
    o_tasks := p_tasks; o_versions := p_versions; o_timeouts := p_timeouts;
    IF NOT EXISTS (SELECT 1 FROM {schema}.pauses) THEN RETURN; END IF;
    SELECT array_agg(p.rule_id) INTO v_expired
    FROM (
        SELECT x.rule_id FROM {schema}.pauses AS x WHERE x.expires_at <= {schema}.now_v1()
        ORDER BY x.rule_id FOR UPDATE SKIP LOCKED
    ) AS p;
    IF v_expired IS NOT NULL THEN
        PERFORM {schema}.lift_v1(v_expired);
    END IF;
    SELECT coalesce(array_agg(o.task ORDER BY o.place), '{}'), coalesce(array_agg(o.version ORDER BY o.place), '{}'),
           coalesce(array_agg(o.timeout ORDER BY o.place), '{}')
      INTO o_tasks, o_versions, o_timeouts
      FROM unnest(p_tasks, p_versions, p_timeouts) WITH ORDINALITY AS o(task, version, timeout, place)
     WHERE NOT EXISTS (
         SELECT 1 FROM {schema}.pauses AS p WHERE p.task = o.task AND p.execution_id IS NULL AND p.step IS NULL);
    o_rules := {schema}.rules_v1();
END $$;

CREATE FUNCTION {schema}.rule_v1(p {schema}.pauses) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_array(p.rule_id, p.execution_id, p.task, p.step, p.reason, p.created_at, p.expires_at)
$$;

CREATE FUNCTION {schema}.rules_v1() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_agg({schema}.rule_v1(p) ORDER BY p.rule_id), '[]')::text FROM {schema}.pauses AS p
$$;

-- Suspends runs of which a rule holds a call; after the flush that wrote their other facts, and as that suspends.
CREATE FUNCTION {schema}.hold_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[], p_wake_at bigint[], p_waits smallint[], p_seen integer[],
    p_cleanup boolean[], p_error bytea[], p_compensating boolean[], p_children_left integer[], p_rules bigint[],
    p_only_held boolean[],
    OUT o_now bigint, OUT o_lost bigint[], OUT o_refused bigint[], OUT o_cancelled bigint[], OUT o_ready boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_rules bigint[];
    v_held bigint[];
BEGIN
    -- Race: such a rule is just being ended. Either its end waits for this and finds the runs, or this waits for it and finds no
    -- rule: then nobody would wake the runs for it, and they are due at once.
    SELECT coalesce(array_agg(p.rule_id), '{}') INTO v_rules
    FROM (
        SELECT x.rule_id FROM {schema}.pauses AS x WHERE x.rule_id = ANY (p_rules) ORDER BY x.rule_id FOR KEY SHARE
    ) AS p;
    SELECT l.o_held, l.o_cancelled INTO v_held, o_cancelled FROM {schema}.lock_v1(p_worker, p_runs, p_epochs, '{}') AS l;
    o_now := {schema}.now_v1();
    SELECT coalesce(array_agg(g.run_id), '{}') INTO o_lost
    FROM unnest(p_runs) AS g(run_id) WHERE g.run_id <> ALL (v_held);
    WITH parked AS (
        UPDATE {schema}.active AS a SET
            worker_id = NULL,
            wake_at = CASE WHEN u.rule IS NULL THEN o_now WHEN u.compensating THEN u.wake_at
                           ELSE least(u.wake_at, a.deadline) END,
            waits = u.waits,
            children_left = u.children_left,
            cleanup = u.cleanup,
            error = u.error,
            -- A rule of the whole execution holds it already, whatever else does.
            held_by = coalesce(u.rule, CASE WHEN a.queue = '' THEN a.held_by END),
            held_at = CASE WHEN u.rule IS NOT NULL THEN coalesce(a.held_at, o_now) WHEN a.queue = '' THEN a.held_at END,
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
        RETURNING a.run_id, a.wake_at
    )
    SELECT coalesce(bool_or(parked.wake_at <= o_now), false),
           coalesce((SELECT array_agg(h.run_id) FROM unnest(v_held) AS h(run_id)
                     WHERE h.run_id NOT IN (SELECT x.run_id FROM parked AS x)), '{}')
      INTO o_ready, o_refused FROM parked;
END $$;
