-- Children: which call of its parent a run answers, and how many open children wake a parent that waits for them.
-- parent_run of zart_active is set for awaited children only; that of zart_runs for detached ones too.
ALTER TABLE zart_active ADD COLUMN parent_name TEXT;
ALTER TABLE zart_active ADD COLUMN parent_ordinal INTEGER;
ALTER TABLE zart_active ADD COLUMN children_left INTEGER NOT NULL DEFAULT 0;

-- The open children of a run that ends or is cancelled.
CREATE INDEX zart_active_parent ON zart_active (parent_run) WHERE parent_run IS NOT NULL;
-- Children that have ended, in that order: what a parent in memory has not heard of yet.
CREATE INDEX zart_steps_ended ON zart_steps (run_id, event_seq) WHERE kind = 'child' AND event_seq IS NOT NULL;
