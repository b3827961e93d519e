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
