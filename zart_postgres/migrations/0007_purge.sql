-- One portion of a purge: looks at the next p_limit ends of runs with one of these statuses, longer than p_older_than ago, after
-- (p_finished_at, p_run). o_finished_at and o_run are where the next portion begins; NULL when there is none.
CREATE FUNCTION {schema}.purge_v1(
    p_finished_at bigint, p_run bigint, p_limit integer, p_older_than bigint, p_statuses text[],
    OUT o_now bigint, OUT o_executions integer, OUT o_finished_at bigint, OUT o_run bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_found bigint[]; v_times bigint[];
    v_runs bigint[];
    v_going bigint[];
    v_whole text[]; v_latest bigint[];
    v_earlier bigint[]; v_owners bigint[]; v_busy boolean[];
    v_kept bigint[];               -- those that cannot go yet because of their earlier runs
BEGIN
    o_now := {schema}.now_v1();
    o_executions := 0;
    -- Of each status in the order in which they ended: what is too young, or ended otherwise, is not met.
    SELECT array_agg(f.run_id ORDER BY f.finished_at, f.run_id), array_agg(f.finished_at ORDER BY f.finished_at, f.run_id)
      INTO v_found, v_times
    FROM (
        SELECT n.finished_at, n.run_id
        FROM unnest(p_statuses) AS s(status)
        CROSS JOIN LATERAL (
            SELECT e.finished_at, e.run_id FROM {schema}.results AS e
            WHERE e.status = s.status AND (e.finished_at, e.run_id) > (p_finished_at, p_run)
              AND e.finished_at <= o_now - p_older_than
            ORDER BY e.finished_at, e.run_id LIMIT p_limit
        ) AS n
        ORDER BY n.finished_at, n.run_id LIMIT p_limit
    ) AS f;
    IF v_found IS NULL THEN RETURN; END IF;
    IF cardinality(v_found) = p_limit THEN
        o_run := v_found[p_limit];
        o_finished_at := v_times[p_limit];
    END IF;

    -- Race: an operator restarts or retries one of them right now, or another purge has it. Both lock the latest run in `runs`: what
    -- is locked is passed over here and met again by the next purge; what is locked here is gone for who comes later.
    SELECT array_agg(l.run_id) INTO v_runs
    FROM (
        SELECT x.run_id FROM {schema}.runs AS x
        WHERE x.run_id = ANY (ARRAY(
            SELECT n.run_id
            FROM unnest(v_found) AS f(run_id)
            JOIN {schema}.runs AS r ON r.run_id = f.run_id
            CROSS JOIN LATERAL (
                SELECT y.run_id FROM {schema}.runs AS y
                WHERE y.execution_id = r.execution_id AND y.run > 0 ORDER BY y.run DESC LIMIT 1
            ) AS n))
        ORDER BY x.run_id FOR UPDATE SKIP LOCKED
    ) AS l;
    IF v_runs IS NULL THEN RETURN; END IF;

    -- A later statement, so it sees what was committed before the locks. A run goes when its execution, which is its latest run,
    -- may go. What has ended first goes first, so an execution of many is purged in portions.
    SELECT array_agg(r.run_id), array_agg(r.run_id) FILTER (WHERE r.run_id = e.run_id)
      INTO v_going, v_latest
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

    IF v_latest IS NOT NULL THEN
        -- Earlier runs of executions that go, which have not been met: they ended otherwise. And whether children of theirs are at
        -- work.
        SELECT array_agg(o.run_id), array_agg(o.latest), array_agg(o.busy) INTO v_earlier, v_owners, v_busy
        FROM (
            SELECT x.run_id, r.run_id AS latest,
                   EXISTS (SELECT 1 FROM {schema}.active AS c WHERE c.parent_run = x.run_id)
                   OR EXISTS (SELECT 1 FROM {schema}.active AS c WHERE c.parent_run = -x.run_id) AS busy
            FROM unnest(v_latest) AS l(run_id)
            JOIN {schema}.runs AS r ON r.run_id = l.run_id
            JOIN {schema}.runs AS x ON x.execution_id = r.execution_id AND x.run > 0 AND x.run < r.run
            WHERE x.run_id <> ALL (v_going) LIMIT p_limit + 1
        ) AS o;
        IF cardinality(v_earlier) > p_limit THEN
            -- As many as that alone are a portion: their executions are met again by the next.
            v_kept := v_latest;
            IF false = ANY (v_busy[1:p_limit]) THEN  -- else they would be met for ever
                o_finished_at := p_finished_at;
                o_run := p_run;
            END IF;
        ELSE
            SELECT array_agg(o.latest) INTO v_kept FROM unnest(v_owners, v_busy) AS o(latest, busy) WHERE o.busy;
        END IF;
        SELECT array_agg(g.run_id) INTO v_going FROM (
            SELECT y.run_id FROM unnest(v_going) AS y(run_id) WHERE y.run_id <> ALL (coalesce(v_kept, '{}'))
            UNION ALL
            (SELECT o.run_id FROM unnest(v_earlier[1:p_limit], v_busy[1:p_limit]) AS o(run_id, busy) WHERE NOT o.busy)
        ) AS g;
        SELECT array_agg(r.execution_id) INTO v_whole
        FROM unnest(v_latest) AS l(run_id) JOIN {schema}.runs AS r ON r.run_id = l.run_id
        WHERE l.run_id <> ALL (coalesce(v_kept, '{}'));
        INSERT INTO {schema}.tally_changes (task, queue, status, change)
        SELECT r.task, r.queue, e.status, -count(*)
        FROM unnest(v_latest) AS l(run_id)
        JOIN {schema}.runs AS r ON r.run_id = l.run_id JOIN {schema}.results AS e ON e.run_id = l.run_id
        WHERE l.run_id <> ALL (coalesce(v_kept, '{}')) GROUP BY r.task, r.queue, e.status;
    END IF;
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
