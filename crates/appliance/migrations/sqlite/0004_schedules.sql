-- Schedules, and what became of each of their runs. `definition` is a schedule as JSON; `decided_until_us` is the time
-- until which its occurrences have a row in `schedule_runs`, or were before it was added or enabled.
CREATE TABLE schedules (
    id               TEXT PRIMARY KEY,
    appliance        TEXT NOT NULL,
    name             TEXT NOT NULL,
    definition       TEXT NOT NULL,
    enabled          BOOLEAN NOT NULL,
    added_at_us      BIGINT NOT NULL,
    decided_until_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX schedules_by_name ON schedules (lower(name));

-- A row outlives its schedule. `outcome` is running, done, failed, interrupted or skipped; `reason` says why it failed
-- or was skipped. While a run is running, `data_used_bytes` is what it is expected to use, so that a crash does not make
-- it free of charge.
CREATE TABLE schedule_runs (
    id              TEXT PRIMARY KEY,
    schedule_id     TEXT NOT NULL,
    appliance       TEXT NOT NULL,
    schedule_name   TEXT NOT NULL,
    due_at_us       BIGINT NOT NULL,
    decided_at_us   BIGINT NOT NULL,
    ended_at_us     BIGINT,
    requested       BOOLEAN NOT NULL,
    outcome         TEXT NOT NULL,
    reason          TEXT,
    result_id       TEXT,
    data_used_bytes BIGINT NOT NULL
);

CREATE INDEX schedule_runs_by_time ON schedule_runs (decided_at_us);
CREATE INDEX schedule_runs_by_schedule ON schedule_runs (schedule_id, decided_at_us);
