-- Pauses: rules by execution, task and step (a pattern) that keep what they match from starting.
-- AUTOINCREMENT: a rule's number is never used again, so nobody lifts a later rule by it.
CREATE TABLE zart_pauses (
    rule_id      INTEGER PRIMARY KEY AUTOINCREMENT,
    execution_id TEXT,
    task         TEXT,
    step         TEXT,
    reason       TEXT,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    nonce        INTEGER NOT NULL          -- of the call that made it, which may be repeated
) STRICT;

-- The rules of an execution; and those of none in particular, which every claim reads.
CREATE INDEX zart_pauses_execution ON zart_pauses (execution_id);
CREATE INDEX zart_pauses_expiry ON zart_pauses (expires_at) WHERE expires_at IS NOT NULL;

-- A run that is held by a rule of its execution, or at a step, has an empty queue, which no worker works on and no start can
-- name: so it is in nobody's way, and whatever else happens to it needs to know nothing of pauses. Its own queue is in zart_runs.
ALTER TABLE zart_active ADD COLUMN held_by INTEGER;
ALTER TABLE zart_active ADD COLUMN held_at INTEGER;
CREATE INDEX zart_active_held ON zart_active (held_by) WHERE held_by IS NOT NULL;
