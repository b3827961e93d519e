-- For people with psql: times as timestamps, payloads as text.

CREATE FUNCTION {schema}.moment(p_at bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT timestamptz '1970-01-01 00:00:00+00' + p_at * interval '1 microsecond'
$$;

-- Payloads are UTF-8 JSON unless a codec made something else of them; that is shown in hexadecimal.
CREATE FUNCTION {schema}.readable(p_payload bytea) RETURNS text LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN convert_from(p_payload, 'UTF8');
EXCEPTION WHEN OTHERS THEN
    RETURN encode(p_payload, 'hex');
END $$;

CREATE VIEW {schema}.executions AS
SELECT r.execution_id, r.run_id, r.run, r.task, coalesce(e.version, a.version) AS version,
       CASE WHEN e.run_id IS NOT NULL THEN e.status WHEN a.quarantined THEN 'paused'
            WHEN a.worker_id IS NOT NULL THEN 'running' WHEN a.epoch = 0 THEN 'scheduled' ELSE 'waiting' END AS status,
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
       {schema}.readable(CASE WHEN e.run_id IS NULL THEN a.error ELSE e.error END) AS error
FROM {schema}.runs AS r
LEFT JOIN {schema}.results AS e ON e.run_id = r.run_id
LEFT JOIN {schema}.active AS a ON a.run_id = r.run_id
LEFT JOIN {schema}.workers AS w ON w.worker_id = a.worker_id
-- Below zero: a step of the execution that is a run of its own while it lasts.
WHERE r.run > 0;

CREATE VIEW {schema}.steps_readable AS
SELECT r.execution_id, r.run, s.name, s.ordinal, s.kind, s.status, s.attempts,
       {schema}.moment(s.started_at) AS started_at, {schema}.moment(s.finished_at) AS finished_at,
       {schema}.moment(s.wake_at) AS wake_at, {schema}.moment(s.deadline) AS deadline, s.event_seq,
       (SELECT w.name FROM {schema}.workers AS w WHERE w.worker_id = s.worker_id) AS worker,
       {schema}.readable(s.output) AS output, {schema}.readable(s.error) AS error,
       {schema}.readable(s.details) AS details
FROM {schema}.steps AS s JOIN {schema}.runs AS r ON r.run_id = s.run_id;

CREATE VIEW {schema}.attempts_readable AS
SELECT r.execution_id, r.run, t.name, t.ordinal, t.handler_attempt, t.attempt,
       {schema}.moment(t.started_at) AS started_at, {schema}.moment(t.finished_at) AS finished_at,
       (SELECT w.name FROM {schema}.workers AS w WHERE w.worker_id = t.worker_id) AS worker,
       {schema}.readable(t.error) AS error
FROM {schema}.attempts AS t JOIN {schema}.runs AS r ON r.run_id = t.run_id;

CREATE VIEW {schema}.events_readable AS
SELECT r.execution_id, r.run, v.seq, v.name, v.event_id, {schema}.moment(v.sent_at) AS sent_at,
       {schema}.readable(v.payload) AS payload
FROM {schema}.events AS v JOIN {schema}.runs AS r ON r.run_id = v.run_id;
