-- One portion of a purge: looks at the next p_limit ends of runs after p_after. o_after is where the next portion begins; NULL
-- when there is none.
CREATE FUNCTION {schema}.purge_v1(
    p_after bigint, p_limit integer, p_older_than bigint, p_statuses text[],
    OUT o_now bigint, OUT o_executions integer, OUT o_after bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_found bigint[];
    v_runs bigint[];
    v_going bigint[];
    v_whole text[];
BEGIN
    o_now := {schema}.now_v1();
    o_executions := 0;
    SELECT array_agg(f.run_id) INTO v_found
    FROM (SELECT e.run_id FROM {schema}.results AS e WHERE e.run_id > p_after ORDER BY e.run_id LIMIT p_limit) AS f;
    IF cardinality(v_found) = p_limit THEN
        o_after := v_found[p_limit];
    END IF;
    IF v_found IS NULL THEN RETURN; END IF;

    -- Race: an operator restarts or retries one of them right now, or another purge has it. Both lock the latest run in `runs`: what
    -- is locked is passed over here and met again by the next purge; what is locked here is gone for who comes later.
    SELECT array_agg(l.run_id) INTO v_runs
    FROM (
        SELECT x.run_id FROM {schema}.runs AS x
        WHERE x.run_id = ANY (
            SELECT n.run_id
            FROM unnest(v_found) AS f(run_id)
            JOIN {schema}.runs AS r ON r.run_id = f.run_id
            CROSS JOIN LATERAL (
                SELECT y.run_id FROM {schema}.runs AS y
                WHERE y.execution_id = r.execution_id AND y.run > 0 ORDER BY y.run DESC LIMIT 1
            ) AS n)
        ORDER BY x.run_id FOR UPDATE SKIP LOCKED
    ) AS l;
    IF v_runs IS NULL THEN RETURN; END IF;

    -- A later statement, so it sees what was committed before the locks. A run goes when its execution, which is its latest run,
    -- may go: the oldest runs first, so an execution of many is purged in portions.
    SELECT array_agg(r.run_id), array_agg(r.execution_id) FILTER (WHERE r.run_id = e.run_id)
      INTO v_going, v_whole
      FROM unnest(v_found) AS f(run_id)
      JOIN {schema}.runs AS r ON r.run_id = f.run_id
      CROSS JOIN LATERAL (
          SELECT y.run_id FROM {schema}.runs AS y
          WHERE y.execution_id = r.execution_id AND y.run > 0 ORDER BY y.run DESC LIMIT 1
      ) AS n
      JOIN {schema}.results AS e ON e.run_id = n.run_id
     WHERE n.run_id = ANY (v_runs) AND e.status = ANY (p_statuses) AND e.finished_at <= o_now - p_older_than
       -- children that were cancelled with it, and clean up
       AND NOT EXISTS (SELECT 1 FROM {schema}.active AS c WHERE c.parent_run = r.run_id)
       AND NOT EXISTS (SELECT 1 FROM {schema}.active AS c WHERE c.parent_run = n.run_id)
       AND NOT EXISTS (SELECT 1 FROM {schema}.active AS c WHERE c.parent_run = -r.run_id); -- of an earlier life of it
    IF v_going IS NULL THEN RETURN; END IF;
    DELETE FROM {schema}.steps AS x WHERE x.run_id = ANY (v_going);
    DELETE FROM {schema}.attempts AS x WHERE x.run_id = ANY (v_going);
    DELETE FROM {schema}.events AS x WHERE x.run_id = ANY (v_going);
    DELETE FROM {schema}.published AS x WHERE x.run_id = ANY (v_going);
    DELETE FROM {schema}.results AS x WHERE x.run_id = ANY (v_going);
    DELETE FROM {schema}.runs AS x WHERE x.run_id = ANY (v_going);
    IF v_whole IS NOT NULL THEN
        DELETE FROM {schema}.pauses AS x WHERE x.execution_id = ANY (v_whole);
        DELETE FROM {schema}.keyed_starts AS x WHERE x.execution_id = ANY (v_whole);
        o_executions := cardinality(v_whole);
    END IF;
END $$;
