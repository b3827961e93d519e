-- Recurrences: what is started again and again, by the clock. Whatever changes a row raises its revision, and names the one that it has
-- seen: so of any number of workers that see the same tick, one fires it.
CREATE TABLE zart_recurrences (
    name           TEXT    PRIMARY KEY,
    revision       INTEGER NOT NULL,
    task           TEXT    NOT NULL,
    definition     TEXT    NOT NULL,          -- JSON, of which the tables know nothing
    counter        INTEGER NOT NULL DEFAULT 0, -- the number that the next id gets
    skipped        INTEGER NOT NULL DEFAULT 0, -- ticks that started nothing
    created_at     INTEGER NOT NULL,
    next_at        INTEGER,                   -- NULL: never again
    owed_until     INTEGER,                   -- ticks up to here were missed, and are made up for one by one
    stopped        INTEGER NOT NULL,
    last_execution TEXT,
    last_at        INTEGER,                   -- when it was started
    input          BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX zart_recurrences_due ON zart_recurrences (next_at) WHERE NOT stopped AND next_at IS NOT NULL;
