-- How many executions have ended, by how, so that nobody has to count them. Whatever ends a run adds a row of changes in its own
-- transaction, and changes none: nobody waits for anybody. Sweeps fold these into the tallies. The sum of both is exact at any moment.
-- Earlier runs of an execution are not counted, nor are parts.
CREATE TABLE {schema}.tallies (
    count  bigint NOT NULL,
    task   text   COLLATE "C" NOT NULL,
    queue  text   COLLATE "C" NOT NULL,
    status text   COLLATE "C" NOT NULL,
    PRIMARY KEY (task, queue, status)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE TABLE {schema}.tally_changes (
    change bigint NOT NULL,
    task   text   COLLATE "C" NOT NULL,
    queue  text   COLLATE "C" NOT NULL,
    status text   COLLATE "C" NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- Parts that killed their workers: whoever waits for one is shown as paused.
CREATE INDEX active_quarantined ON {schema}.active (parent_run) WHERE quarantined;

-- What people want to know of a worker: the version of the library, those of the tasks' handlers in their order, the number of its
-- slots, and the length of its lease, which with its end tells of the last heartbeat.
ALTER TABLE {schema}.workers
    ADD COLUMN lease bigint NOT NULL DEFAULT 0,
    ADD COLUMN concurrency bigint NOT NULL DEFAULT 0,
    ADD COLUMN library text NOT NULL DEFAULT '',
    ADD COLUMN versions text[] NOT NULL DEFAULT '{}';

-- A run_id before which all runs were created earlier than p_at: they are numbered in that order, about.
CREATE FUNCTION {schema}.first_run_v1(p_at bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_low bigint := 0;
    v_high bigint;
    v_middle bigint; v_run bigint; v_created bigint;
BEGIN
    SELECT coalesce(max(r.run_id), 0) + 1 INTO v_high FROM {schema}.runs AS r;
    WHILE v_low < v_high LOOP
        v_middle := (v_low + v_high) / 2;
        SELECT r.run_id, r.created_at INTO v_run, v_created FROM {schema}.runs AS r
        WHERE r.run_id >= v_middle AND r.run_id < v_high ORDER BY r.run_id LIMIT 1;
        IF v_run IS NULL OR v_created >= p_at THEN
            v_high := v_middle;
        ELSE
            v_low := v_run + 1;
        END IF;
    END LOOP;
    RETURN v_low;
END $$;

-- The next p_limit runs of a stream below p_before, newest first: see zart_core.listing. In a function for its settings: as long as the
-- server knows little of the tables it would rather read them whole, and put all of it in order.
CREATE FUNCTION {schema}.stream_v1(p_source text, p_before bigint, p_least bigint, p_limit bigint, p_task text, p_status text)
RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- Rows are compared where another index would give the order too, if it were filtered.
    CASE p_source
    WHEN 'runs' THEN
        RETURN QUERY SELECT r.run_id FROM {schema}.runs AS r
            WHERE r.run_id < p_before AND r.run_id >= p_least ORDER BY r.run_id DESC LIMIT p_limit;
    WHEN 'task' THEN
        RETURN QUERY SELECT r.run_id FROM {schema}.runs AS r
            WHERE (r.task, r.run_id) < (p_task, p_before) AND (r.task, r.run_id) >= (p_task, p_least)
            ORDER BY r.task DESC, r.run_id DESC LIMIT p_limit;
    WHEN 'live' THEN
        RETURN QUERY SELECT a.run_id FROM {schema}.active AS a
            WHERE a.run_id < p_before AND a.run_id >= p_least ORDER BY a.run_id DESC LIMIT p_limit;
    WHEN 'held' THEN
        -- No more than workers have slots: put in order.
        RETURN QUERY SELECT h.run_id FROM (
            SELECT a.run_id FROM {schema}.active AS a WHERE a.worker_id > 0 OFFSET 0) AS h
            WHERE h.run_id < p_before AND h.run_id >= p_least ORDER BY h.run_id DESC LIMIT p_limit;
    WHEN 'results' THEN
        RETURN QUERY SELECT e.run_id FROM {schema}.results AS e
            WHERE e.run_id < p_before AND e.run_id >= p_least ORDER BY e.run_id DESC LIMIT p_limit;
    WHEN 'bad' THEN
        RETURN QUERY SELECT e.run_id FROM {schema}.results AS e
            WHERE (e.status, e.run_id) < (p_status, p_before) AND (e.status, e.run_id) >= (p_status, p_least)
              AND e.status <> 'completed'
            ORDER BY e.status DESC, e.run_id DESC LIMIT p_limit;
    END CASE;
END $$;

-- Runs whose execution_id begins with a text, in no order.
CREATE FUNCTION {schema}.prefixed_v1(p_begin text, p_beyond text, p_limit bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY SELECT r.run_id FROM {schema}.runs AS r
        WHERE r.execution_id >= p_begin AND r.execution_id < p_beyond LIMIT p_limit;
END $$;

-- Runs that have ended so, from p_from on, before p_until, in no order.
CREATE FUNCTION {schema}.ended_v1(p_statuses text[], p_from bigint, p_until bigint, p_limit bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY SELECT n.run_id FROM unnest(p_statuses) AS s(status)
        CROSS JOIN LATERAL (
            SELECT e.run_id FROM {schema}.results AS e
            WHERE e.status = s.status AND e.finished_at >= p_from AND e.finished_at < p_until
            ORDER BY e.status, e.finished_at LIMIT p_limit
        ) AS n LIMIT p_limit;
END $$;
