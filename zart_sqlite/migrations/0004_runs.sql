-- Executions of several runs: what began a run (start, continue, restart, rerun, fork); how often it has lived (a failed run
-- may be revived), and since when, which tells how long its deadline was.
ALTER TABLE zart_runs ADD COLUMN trigger TEXT NOT NULL DEFAULT 'start';
ALTER TABLE zart_runs ADD COLUMN lives INTEGER NOT NULL DEFAULT 1;
ALTER TABLE zart_runs ADD COLUMN alive_since INTEGER;
