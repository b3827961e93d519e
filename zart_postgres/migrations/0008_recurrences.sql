-- Recurrences: what is started again and again, by the clock. Whatever changes a row raises its revision, and names the one that it has
-- seen: so of any number of workers that see the same tick, one fires it.
CREATE TABLE {schema}.recurrences (
    revision       bigint  NOT NULL,
    counter        bigint  NOT NULL DEFAULT 0,       -- the number that the next id gets
    skipped        bigint  NOT NULL DEFAULT 0,       -- ticks that started nothing
    created_at     bigint  NOT NULL,
    next_at        bigint,                           -- NULL: never again
    owed_until     bigint,                           -- ticks up to here were missed, and are made up for one by one
    last_at        bigint,                           -- when the last execution was started
    stopped        boolean NOT NULL,
    name           text    COLLATE "C" PRIMARY KEY,
    task           text    COLLATE "C" NOT NULL,
    last_execution text    COLLATE "C",
    definition     text    NOT NULL,                 -- JSON, of which the tables know nothing
    input          bytea   NOT NULL
);
CREATE INDEX recurrences_due ON {schema}.recurrences (next_at) WHERE NOT stopped AND next_at IS NOT NULL;

-- Whoever needs both locks a recurrence before any run.

CREATE FUNCTION {schema}.is_live_v1(p_execution_id text) RETURNS boolean LANGUAGE sql VOLATILE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
    SELECT EXISTS (
        SELECT 1 FROM {schema}.active AS a WHERE a.run_id = (
            SELECT r.run_id FROM {schema}.runs AS r WHERE r.execution_id = p_execution_id ORDER BY r.run DESC LIMIT 1))
$$;

-- Starts executions of a recurrence and moves it on. o_started is NULL when nothing was done: its revision is another one, somebody else is
-- at it, or its last execution is live and p_unless_live. SQLSTATE 55P03 when a user's open transaction has locked what it needs, and
-- for longer than p_patience milliseconds: other recurrences, and whoever stops this one, wait meanwhile.
CREATE FUNCTION {schema}.fire_v1(
    p_name text, p_revision bigint, p_prefix text, p_suffix text, p_timeout bigint, p_count integer, p_next_at bigint,
    p_owed_until bigint, p_skipped bigint, p_unless_live boolean, p_cancel_last boolean, p_reason text, p_failure jsonb,
    p_forever bigint, p_patience integer,
    OUT o_now bigint, OUT o_started text[], OUT o_ready boolean, OUT o_signals bigint[], OUT o_finished text[])
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_row {schema}.recurrences;
    v_counter bigint;
    v_id text;
    v_created boolean;
    v_started text[] := '{}';
    v_cancelled record;
BEGIN
    o_ready := false; o_signals := '{}'; o_finished := '{}';
    o_now := {schema}.now_v1();
    PERFORM {schema}.patience_v1(p_patience);
    -- Race: other workers fire the same tick, somebody stops the recurrence. Whoever has the row first raises its revision. The others
    -- need not wait for that: they pass over the row while it is locked, and find another revision later.
    SELECT c.* INTO v_row FROM {schema}.recurrences AS c
    WHERE c.name = p_name AND c.revision = p_revision AND NOT c.stopped FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    IF p_unless_live AND {schema}.is_live_v1(v_row.last_execution) THEN RETURN; END IF;
    IF p_cancel_last THEN
        WHILE {schema}.is_live_v1(v_row.last_execution) LOOP
            v_cancelled := {schema}.cancel_v1(v_row.last_execution, p_reason, p_failure);
            o_ready := o_ready OR v_cancelled.o_ready;
            o_signals := o_signals || v_cancelled.o_signals;
            o_finished := o_finished || v_cancelled.o_finished;
            -- Race: while the cancellation waited for the run's lock, the run has gone on as the next one.
            EXIT WHEN v_cancelled.o_outcome <> 'finished';
        END LOOP;
    END IF;
    v_counter := v_row.counter;
    WHILE cardinality(v_started) < p_count LOOP
        v_id := p_prefix || v_counter || p_suffix;
        v_counter := v_counter + 1;
        -- Somebody has started one of this id by hand: the tick gets the next one, and is not lost.
        CONTINUE WHEN EXISTS (SELECT 1 FROM {schema}.runs AS r WHERE r.execution_id = v_id);
        BEGIN
            SELECT s.created INTO v_created FROM {schema}.start_v1(
                ARRAY[v_id], ARRAY[v_row.task], ARRAY[v_row.input], ARRAY[NULL::text], ARRAY['default'], ARRAY[0::bigint],
                ARRAY['{}'], ARRAY[NULL::bigint], ARRAY[NULL::bigint], ARRAY[p_timeout], ARRAY[NULL::bigint],
                ARRAY[NULL::bigint], p_forever) AS s;
        EXCEPTION WHEN SQLSTATE 'ZT001' THEN
            -- Race: the id was taken since, by an execution of another task.
            v_created := false;
        END;
        IF v_created THEN
            v_started := v_started || v_id;
            o_ready := true;
        END IF;
    END LOOP;
    UPDATE {schema}.recurrences AS c SET
        revision = c.revision + 1,
        counter = v_counter,
        next_at = p_next_at,
        owed_until = p_owed_until,
        skipped = c.skipped + p_skipped,
        last_execution = CASE WHEN p_count > 0 THEN v_started[p_count] ELSE c.last_execution END,
        last_at = CASE WHEN p_count > 0 THEN o_now ELSE c.last_at END
    WHERE c.name = p_name;
    o_started := v_started;
END $$;

CREATE VIEW {schema}.recurrences_readable AS
SELECT c.name, c.task, c.definition::jsonb AS definition, c.stopped, {schema}.moment(c.next_at) AS next_at, c.counter, c.skipped,
       c.last_execution, {schema}.moment(c.last_at) AS last_at, {schema}.moment(c.created_at) AS created_at,
       {schema}.readable(c.input) AS input
FROM {schema}.recurrences AS c;
