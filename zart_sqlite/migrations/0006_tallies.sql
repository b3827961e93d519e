-- How many executions have ended, by how: kept by whatever ends a run, so that nobody has to count them. All of it under the write lock,
-- which whoever ends a run holds anyway. Earlier runs of an execution are not counted, nor are parts.
CREATE TABLE zart_tallies (
    task   TEXT    NOT NULL,
    queue  TEXT    NOT NULL,
    status TEXT    NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (task, queue, status)
) STRICT, WITHOUT ROWID;

-- What people want to know of a worker. The version of the library, those of the tasks' handlers in their order (a JSON array), the
-- number of its slots, and the length of its lease, which with its end tells of the last heartbeat.
ALTER TABLE zart_workers ADD COLUMN library TEXT NOT NULL DEFAULT '';
ALTER TABLE zart_workers ADD COLUMN versions TEXT NOT NULL DEFAULT '[]';
ALTER TABLE zart_workers ADD COLUMN concurrency INTEGER NOT NULL DEFAULT 0;
ALTER TABLE zart_workers ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;
