-- Children of one lane, of which only so many may be claimed at once: the others are held back until one of them ends.
ALTER TABLE zart_active ADD COLUMN lane TEXT;
ALTER TABLE zart_active ADD COLUMN held INTEGER NOT NULL DEFAULT 0;

CREATE INDEX zart_active_lane ON zart_active (parent_run, lane, held, run_id) WHERE lane IS NOT NULL;

-- Steps that are runs of their own end like children.
DROP INDEX zart_steps_ended;
CREATE INDEX zart_steps_ended ON zart_steps (run_id, event_seq)
    WHERE kind IN ('child', 'parallel') AND event_seq IS NOT NULL;
