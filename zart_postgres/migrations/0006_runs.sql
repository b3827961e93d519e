-- Executions of several runs: what began a run (start, continue, restart, rerun, fork); how often it has lived (a failed run
-- may be revived), and since when, which tells how long its deadline was.
ALTER TABLE {schema}.runs
    ADD COLUMN alive_since bigint,
    ADD COLUMN lives integer NOT NULL DEFAULT 1,
    ADD COLUMN trigger text COLLATE "C" NOT NULL DEFAULT 'start';

-- Whoever adds a run to an execution, or takes the end of one back, locks the row in `runs` of the latest before anything
-- else. Nobody locks it while holding a row of `active`.

-- The highest number of a run's signals, as far as its rows tell.
CREATE FUNCTION {schema}.last_signal_v1(p_run bigint) RETURNS integer LANGUAGE sql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
    SELECT greatest(
        0, (SELECT max(v.seq) FROM {schema}.events AS v WHERE v.run_id = p_run),
        (SELECT max(s.event_seq) FROM {schema}.steps AS s WHERE s.run_id = p_run AND s.event_seq IS NOT NULL))
$$;

-- How much a run that begins with a history has to be loaded of: see claim_v1. The lengths are found without the values.
CREATE FUNCTION {schema}.weigh_v1(p_run bigint) RETURNS void LANGUAGE sql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
    UPDATE {schema}.active AS a SET bytes =
        (SELECT octet_length(r.input) FROM {schema}.runs AS r WHERE r.run_id = p_run)
        + (SELECT coalesce(sum(octet_length(s.output)), 0) FROM {schema}.steps AS s WHERE s.run_id = p_run)
        + (SELECT coalesce(sum(octet_length(v.payload)), 0) FROM {schema}.events AS v WHERE v.run_id = p_run)
    WHERE a.run_id = p_run
$$;

-- Ends a live run whose place another one takes: whoever awaits it is not answered, but handed on. The caller has locked its
-- row and its family, by lock_v1. p_failure is for the children that are cancelled: see cancelled_v1.
CREATE FUNCTION {schema}.end_for_next_v1(
    p_run bigint, p_status text, p_error bytea, p_reason text, p_now bigint, p_failure jsonb,
    OUT o_parent_run bigint, OUT o_parent_name text, OUT o_parent_ordinal integer,
    OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_orphaned bigint[];
    v_ready boolean; v_signals bigint[]; v_finished text[];
BEGIN
    SELECT a.parent_run, a.parent_name, a.parent_ordinal INTO o_parent_run, o_parent_name, o_parent_ordinal
    FROM {schema}.active AS a WHERE a.run_id = p_run;
    IF o_parent_run IS NOT NULL THEN
        UPDATE {schema}.active AS a SET parent_run = NULL, parent_name = NULL, parent_ordinal = NULL WHERE a.run_id = p_run;
    END IF;
    SELECT e.o_ready, e.o_signals, e.o_finished, e.o_orphaned INTO o_ready, o_signals, o_finished, v_orphaned
    FROM {schema}.end_runs_v1(ARRAY[p_run], ARRAY[p_status], ARRAY[NULL::bytea], ARRAY[p_error], false, p_now) AS e;
    IF v_orphaned IS NOT NULL THEN
        SELECT array_agg(c.run_id) INTO v_orphaned FROM {schema}.active AS c WHERE c.parent_run = ANY (v_orphaned);
    END IF;
    IF v_orphaned IS NOT NULL THEN
        SELECT c.o_ready, c.o_signals, c.o_finished INTO v_ready, v_signals, v_finished
        FROM {schema}.cancel_runs_v1(v_orphaned, p_reason, p_now, p_failure) AS c;
        o_ready := o_ready OR v_ready;
        o_signals := o_signals || v_signals;
        o_finished := o_finished || v_finished;
    END IF;
END $$;

-- Stores a run made from another one, with what it takes over; NULL when the id of a new execution is taken. Of the rows of
-- the source it takes those named by p_keep (NULL: all) and not by p_drop; see NewRun.
CREATE FUNCTION {schema}.follow_v1(
    p_source bigint, p_execution_id text, p_input bytea, p_trigger text, p_nonce bigint,
    p_keep text[], p_keep_ordinals integer[], p_drop text[], p_drop_ordinals integer[],
    p_parent_run bigint, p_parent_name text, p_parent_ordinal integer, p_timeout bigint, p_now bigint, p_forever bigint)
RETURNS bigint
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run bigint := nextval('{schema}.run_ids');
    v_source {schema}.runs;
    v_new {schema}.runs;
BEGIN
    SELECT r.* INTO v_source FROM {schema}.runs AS r WHERE r.run_id = p_source;
    INSERT INTO {schema}.runs AS r (
        run_id, parent_run, created_at, priority, run, execution_id, task, queue, tags, input, nonce, trigger, key)
    SELECT v_run, CASE WHEN v_source.execution_id = p_execution_id THEN v_source.parent_run END, p_now, v_source.priority,
           CASE WHEN v_source.execution_id = p_execution_id THEN v_source.run + 1 ELSE 1 END,
           p_execution_id, v_source.task, v_source.queue, v_source.tags, coalesce(p_input, v_source.input), p_nonce, p_trigger, v_source.key
    ON CONFLICT (execution_id, run) DO NOTHING
    RETURNING r.* INTO v_new;
    IF v_new.run_id IS NULL THEN RETURN NULL; END IF;
    IF v_new.run > 1 THEN
        -- The source has ended, and its place is taken.
        INSERT INTO {schema}.tally_changes (task, queue, status, change)
        SELECT v_source.task, v_source.queue, e.status, -1 FROM {schema}.results AS e WHERE e.run_id = p_source;
    END IF;

    -- Signals go on to be counted where the source stopped: what is taken over of it keeps its numbers.
    INSERT INTO {schema}.active (
        run_id, wake_at, deadline, priority, queue, task, parent_run, parent_name, parent_ordinal, signal_seq, key)
    VALUES (
        v_run, p_now,
        -- A NULL is no limit: least() passes over it.
        least(CASE WHEN p_timeout IS NOT NULL THEN least(p_now + p_timeout, p_forever) END,
              (SELECT p.deadline FROM {schema}.active AS p WHERE p.run_id = p_parent_run)),
        v_new.priority, v_new.queue, v_new.task, p_parent_run, p_parent_name, p_parent_ordinal,
        {schema}.last_signal_v1(p_source), v_new.key);
    PERFORM {schema}.hold_next_v1(v_run, p_execution_id, p_now);

    IF p_keep IS NULL OR cardinality(p_keep) > 0 THEN
        INSERT INTO {schema}.steps (
            run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
            output, error, details)
        SELECT v_run, s.name, s.ordinal, s.kind, s.status, s.attempts, s.started_at, s.finished_at, s.wake_at, s.deadline,
               s.event_seq, s.worker_id, s.output, s.error, s.details
        FROM {schema}.steps AS s
        WHERE s.run_id = p_source AND s.status = 'completed' AND s.ordinal >= 0 AND s.kind NOT IN ('undo', 'failure')
          AND (p_keep IS NULL OR (s.name, s.ordinal) IN (
              SELECT k.name, k.ordinal FROM unnest(p_keep, p_keep_ordinals) AS k(name, ordinal)))
          AND (s.name, s.ordinal) NOT IN (
              SELECT d.name, d.ordinal FROM unnest(p_drop, p_drop_ordinals) AS d(name, ordinal))
          -- That a saga's block has ended well does not hold for a run in which its steps may run again: it begins anew.
          AND NOT (s.kind = 'choice' AND starts_with(s.name, 'kept:'))
          -- The ordinal of an undo counts how often its step had been undone, and the step's details say how often that was.
          AND NOT EXISTS (
              SELECT 1 FROM {schema}.steps AS u
              WHERE u.run_id = p_source AND u.name = 'undo:' || s.name AND u.kind = 'undo'
                AND (u.status = 'completed' OR u.status = 'pending' AND p_trigger = 'fork')
                AND coalesce(s.details, 'undo:0') = convert_to('undo:' || (u.ordinal - s.ordinal), 'UTF8'));
        INSERT INTO {schema}.attempts (
            run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
        SELECT v_run, t.name, t.ordinal, t.attempt, t.started_at, t.finished_at, t.worker_id, t.error, t.handler_attempt
        FROM {schema}.attempts AS t
        WHERE t.run_id = p_source AND EXISTS (
            SELECT 1 FROM {schema}.steps AS s WHERE s.run_id = v_run AND s.name = t.name AND s.ordinal = t.ordinal);
    END IF;

    -- What the calls that were taken over have read; and what nobody has read, for the same execution.
    INSERT INTO {schema}.events (run_id, sent_at, seq, name, event_id, payload)
    SELECT v_run, v.sent_at, v.seq, v.name, v.event_id, v.payload FROM {schema}.events AS v
    WHERE v.run_id = p_source AND (
        v.seq IN (SELECT s.event_seq FROM {schema}.steps AS s
                  WHERE s.run_id = v_run AND s.kind = 'event' AND s.event_seq IS NOT NULL)
        OR p_trigger <> 'fork' AND v.seq NOT IN (
            SELECT s.event_seq FROM {schema}.steps AS s
            WHERE s.run_id = p_source AND s.kind = 'event' AND s.event_seq IS NOT NULL));
    IF p_trigger <> 'restart' THEN
        INSERT INTO {schema}.published (run_id, key, value)
        SELECT v_run, p.key, p.value FROM {schema}.published AS p WHERE p.run_id = p_source;
    END IF;
    PERFORM {schema}.weigh_v1(v_run);
    RETURN v_run;
END $$;

-- o_outcome: 'missing' (no such source), 'replaced' (another run took its place), 'taken' (the new id exists), 'begun'.
CREATE FUNCTION {schema}.begin_run_v1(
    p_source bigint, p_execution_id text, p_input bytea, p_trigger text, p_nonce bigint,
    p_keep text[], p_keep_ordinals integer[], p_drop text[], p_drop_ordinals integer[],
    p_ended bytea, p_reason text, p_failure jsonb, p_forever bigint,
    OUT o_now bigint, OUT o_outcome text, OUT o_run bigint, OUT o_task text, OUT o_ready boolean, OUT o_signals bigint[],
    OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_source {schema}.runs;
    v_worker bigint;
    v_parent_run bigint; v_parent_name text; v_parent_ordinal integer;
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    SELECT r.* INTO v_source FROM {schema}.runs AS r WHERE r.run_id = p_source FOR NO KEY UPDATE;
    o_now := {schema}.now_v1();
    IF v_source.run_id IS NULL THEN
        o_outcome := 'missing';
        RETURN;
    END IF;
    o_task := v_source.task;
    -- After the lock, so that an earlier try of this call, which may still be under way, has ended.
    SELECT r.run_id INTO o_run FROM {schema}.runs AS r
    WHERE r.execution_id = p_execution_id AND r.nonce = p_nonce ORDER BY r.run DESC LIMIT 1;
    IF o_run IS NOT NULL THEN
        o_outcome := 'begun';
        RETURN;
    END IF;
    IF v_source.execution_id = p_execution_id THEN
        -- Rules before the runs that they hold: see hold_next_v1.
        PERFORM 1 FROM {schema}.pauses AS p WHERE p.execution_id = p_execution_id ORDER BY p.rule_id FOR KEY SHARE;
        -- Race: whoever runs it writes, finishes it or continues it right now. All hold its row's lock: what comes before is
        -- seen here, what comes later finds no live run.
        PERFORM {schema}.lock_v1(NULL, ARRAY[p_source], ARRAY[0], ARRAY[p_source]);
        o_now := {schema}.now_v1();
        IF EXISTS (SELECT 1 FROM {schema}.runs AS n WHERE n.execution_id = p_execution_id AND n.run > v_source.run) THEN
            o_outcome := 'replaced';
            RETURN;
        END IF;
        SELECT a.worker_id INTO v_worker FROM {schema}.active AS a WHERE a.run_id = p_source;
        IF FOUND THEN
            IF p_trigger = 'rerun' AND EXISTS (
                SELECT 1 FROM {schema}.steps AS s
                WHERE s.run_id = p_source AND s.kind = 'undo' AND s.status = 'pending' AND s.finished_at IS NULL
            ) THEN
                o_outcome := 'replaced';  -- an undo would be cut off: whoever asks looks again
                RETURN;
            END IF;
            SELECT e.o_parent_run, e.o_parent_name, e.o_parent_ordinal, e.o_signals, e.o_finished
              INTO v_parent_run, v_parent_name, v_parent_ordinal, o_signals, o_finished
              FROM {schema}.end_for_next_v1(p_source, 'cancelled', p_ended, p_reason, o_now, p_failure) AS e;
            IF v_worker IS NOT NULL THEN
                o_signals := o_signals || p_source;
            END IF;
        END IF;
    END IF;
    o_run := {schema}.follow_v1(
        p_source, p_execution_id, p_input, p_trigger, p_nonce, p_keep, p_keep_ordinals, p_drop, p_drop_ordinals,
        v_parent_run, v_parent_name, v_parent_ordinal, NULL, o_now, p_forever);
    o_outcome := CASE WHEN o_run IS NULL THEN 'taken' ELSE 'begun' END;
    o_ready := o_run IS NOT NULL;
END $$;

-- Finishes runs of a worker and begins the next ones of their executions; after the flush that wrote their other facts. p_patience: see
-- flush_v1. Without any, runs that somebody has locked, or a rule of theirs, are in o_busy, and nothing is written of them.
CREATE FUNCTION {schema}.continue_v1(
    p_worker bigint, p_runs bigint[], p_epochs integer[], p_inputs bytea[], p_timeouts bigint[], p_failure jsonb,
    p_forever bigint, p_patience integer,
    OUT o_now bigint, OUT o_lost bigint[], OUT o_refused bigint[], OUT o_cancelled bigint[], OUT o_ready boolean,
    OUT o_signals bigint[], OUT o_finished text[], OUT o_busy bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_held bigint[];
    v_rules bigint[];
    v_busy bigint[] := '{}';       -- runs of whose execution somebody else has a rule locked
    v_run bigint; v_place integer;
    v_parent_run bigint; v_parent_name text; v_parent_ordinal integer;
    v_signals bigint[]; v_finished text[];
BEGIN
    o_signals := '{}'; o_finished := '{}';
    -- Rules before the runs that they hold: see hold_next_v1.
    IF p_patience = 0 THEN
        -- Whoever ends a rule may wait for a user's transaction meanwhile.
        SELECT coalesce(array_agg(p.rule_id), '{}') INTO v_rules
        FROM (
            SELECT x.rule_id FROM {schema}.pauses AS x
            WHERE x.execution_id IN (SELECT r.execution_id FROM {schema}.runs AS r WHERE r.run_id = ANY (p_runs))
            ORDER BY x.rule_id FOR KEY SHARE SKIP LOCKED
        ) AS p;
        SELECT coalesce(array_agg(DISTINCT r.run_id), '{}') INTO v_busy
        FROM {schema}.runs AS r JOIN {schema}.pauses AS x ON x.execution_id = r.execution_id
        WHERE r.run_id = ANY (p_runs) AND x.rule_id <> ALL (v_rules);
    ELSE
        PERFORM {schema}.patience_v1(p_patience);
        PERFORM 1 FROM {schema}.pauses AS p
        WHERE p.execution_id IN (SELECT r.execution_id FROM {schema}.runs AS r WHERE r.run_id = ANY (p_runs))
        ORDER BY p.rule_id FOR KEY SHARE;
    END IF;
    SELECT l.o_held, l.o_cancelled, l.o_busy INTO v_held, o_cancelled, o_busy
    FROM {schema}.lock_v1(p_worker, p_runs, p_epochs, p_runs, coalesce(p_patience = 0, false)) AS l;
    IF v_busy <> '{}' THEN
        o_busy := o_busy || v_busy;
        v_held := ARRAY(SELECT unnest(v_held) EXCEPT SELECT unnest(v_busy));
        o_cancelled := ARRAY(SELECT unnest(o_cancelled) EXCEPT SELECT unnest(v_busy));
    END IF;
    o_now := {schema}.now_v1();
    SELECT coalesce(array_agg(g.run_id), '{}') INTO o_lost
    FROM unnest(p_runs) AS g(run_id) WHERE g.run_id <> ALL (v_held || o_busy);
    -- A cancellation that was accepted lets nothing but its own end through.
    o_refused := o_cancelled;
    o_ready := false;
    FOR v_run, v_place IN SELECT g.run_id, g.place FROM unnest(p_runs) WITH ORDINALITY AS g(run_id, place) LOOP
        CONTINUE WHEN v_run <> ALL (v_held) OR v_run = ANY (o_cancelled);
        SELECT e.o_parent_run, e.o_parent_name, e.o_parent_ordinal, e.o_signals, e.o_finished
          INTO v_parent_run, v_parent_name, v_parent_ordinal, v_signals, v_finished
          FROM {schema}.end_for_next_v1(v_run, 'completed', NULL, 'its parent has ended', o_now, p_failure) AS e;
        PERFORM {schema}.follow_v1(
            v_run, r.execution_id, p_inputs[v_place], 'continue', NULL, '{}', '{}', '{}', '{}', v_parent_run,
            v_parent_name, v_parent_ordinal, p_timeouts[v_place], o_now, p_forever)
        FROM {schema}.runs AS r WHERE r.run_id = v_run;
        o_signals := o_signals || v_signals;
        o_finished := o_finished || v_finished;
        o_ready := true;
    END LOOP;
END $$;

-- Takes the end of a failed run back. o_revived is false when it is not the latest run, or has not failed at that time.
CREATE FUNCTION {schema}.revive_v1(
    p_execution_id text, p_run bigint, p_finished_at bigint, p_drop text[], p_drop_ordinals integer[],
    p_attempt integer, p_started_at bigint, p_attempt_finished_at bigint, p_error bytea, p_handler_attempt integer,
    p_forever bigint, OUT o_now bigint, OUT o_revived boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_run {schema}.runs;
    v_end {schema}.results;
BEGIN
    SELECT r.* INTO v_run FROM {schema}.runs AS r
    WHERE r.run_id = p_run AND r.execution_id = p_execution_id FOR NO KEY UPDATE;
    o_now := {schema}.now_v1();
    -- Later statements than the lock: what another operator did before is seen.
    SELECT e.* INTO v_end FROM {schema}.results AS e
    WHERE e.run_id = v_run.run_id AND e.status = 'failed' AND e.finished_at = p_finished_at;
    o_revived := v_end.run_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM {schema}.runs AS n WHERE n.execution_id = p_execution_id AND n.run > v_run.run);
    IF NOT o_revived THEN RETURN; END IF;
    DELETE FROM {schema}.results AS e WHERE e.run_id = p_run;
    INSERT INTO {schema}.tally_changes (task, queue, status, change) VALUES (v_run.task, v_run.queue, 'failed', -1);
    DELETE FROM {schema}.steps AS s USING unnest(p_drop, p_drop_ordinals) AS d(name, ordinal)
    WHERE s.run_id = p_run AND s.name = d.name AND s.ordinal = d.ordinal;
    INSERT INTO {schema}.attempts (run_id, name, ordinal, attempt, started_at, finished_at, error, handler_attempt)
    VALUES (p_run, '', 0, p_attempt, p_started_at, p_attempt_finished_at, p_error, p_handler_attempt)
    ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING;
    -- A million claims for each life: an epoch of an earlier one, in a write that is still on its way, is none of this one's.
    INSERT INTO {schema}.active (
        run_id, wake_at, deadline, started_at, priority, epoch, signal_seq, attempt, queue, task, version, cleanup, key)
    VALUES (
        p_run, o_now,
        CASE WHEN v_end.deadline IS NOT NULL
             THEN least(o_now + greatest(0, v_end.deadline - coalesce(v_run.alive_since, v_run.created_at)), p_forever) END,
        coalesce(v_end.started_at, o_now), v_run.priority, least(v_run.lives, 2047) << 20, {schema}.last_signal_v1(p_run),
        v_end.attempt + 1, v_run.queue, v_run.task, v_end.version,
        -- It has done something: a cancellation that comes before the next claim has to be heard by its handler.
        true, v_run.key);
    UPDATE {schema}.runs AS r SET lives = r.lives + 1, alive_since = o_now WHERE r.run_id = p_run;
    PERFORM {schema}.weigh_v1(p_run);
    PERFORM {schema}.hold_next_v1(p_run, p_execution_id, o_now);
    -- Race: children and parts of an earlier life were cancelled with it, and some may still be at work. Their ends are no answers to
    -- the calls of this one, which may have the same names: from here on their link leads to no run (its number is none of any). One
    -- that ends right now holds its row's lock, and has not seen this life. Locked in their order, and after the rules.
    PERFORM 1 FROM {schema}.active AS c WHERE c.parent_run = p_run ORDER BY c.run_id FOR NO KEY UPDATE;
    UPDATE {schema}.active AS c SET parent_run = -p_run WHERE c.parent_run = p_run;
END $$;

CREATE OR REPLACE VIEW {schema}.executions AS
SELECT r.execution_id, r.run_id, r.run, r.task, coalesce(e.version, a.version) AS version,
       CASE WHEN e.run_id IS NOT NULL THEN e.status WHEN a.quarantined THEN 'paused'
            WHEN a.worker_id IS NOT NULL THEN 'running'
            WHEN a.queue = '' OR EXISTS (
                SELECT 1 FROM {schema}.pauses AS p WHERE p.task = a.task AND p.execution_id IS NULL AND p.step IS NULL
            ) THEN 'paused'
            WHEN a.epoch = 0 THEN 'scheduled' ELSE 'waiting' END AS status,
       r.queue, r.priority, r.tags, coalesce(e.attempt, a.attempt) AS attempt,
       {schema}.moment(r.created_at) AS created_at,
       {schema}.moment(coalesce(e.started_at, a.started_at)) AS started_at,
       {schema}.moment(e.finished_at) AS finished_at,
       {schema}.moment(coalesce(e.deadline, a.deadline)) AS deadline,
       {schema}.moment(a.wake_at) AS wake_at,
       w.name AS worker,
       coalesce(a.cancel_requested, e.status = 'cancelled') AS cancel_requested,
       {schema}.readable(r.input) AS input,
       {schema}.readable(e.output) AS output,
       {schema}.readable(CASE WHEN e.run_id IS NULL THEN a.error ELSE e.error END) AS error,
       r.trigger
FROM {schema}.runs AS r
LEFT JOIN {schema}.results AS e ON e.run_id = r.run_id
LEFT JOIN {schema}.active AS a ON a.run_id = r.run_id
LEFT JOIN {schema}.workers AS w ON w.worker_id = a.worker_id
WHERE r.run > 0;
