CREATE TABLE schedules (
    id               TEXT COLLATE "C" PRIMARY KEY,
    appliance        TEXT COLLATE "C" NOT NULL,
    name             TEXT COLLATE "C" NOT NULL,
    definition       TEXT COLLATE "C" NOT NULL,
    enabled          BOOLEAN NOT NULL,
    added_at_us      BIGINT NOT NULL,
    decided_until_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX schedules_by_name ON schedules (lower(name));

CREATE TABLE schedule_runs (
    id              TEXT COLLATE "C" PRIMARY KEY,
    schedule_id     TEXT COLLATE "C" NOT NULL,
    appliance       TEXT COLLATE "C" NOT NULL,
    schedule_name   TEXT COLLATE "C" NOT NULL,
    due_at_us       BIGINT NOT NULL,
    decided_at_us   BIGINT NOT NULL,
    ended_at_us     BIGINT,
    requested       BOOLEAN NOT NULL,
    outcome         TEXT COLLATE "C" NOT NULL,
    reason          TEXT COLLATE "C",
    result_id       TEXT COLLATE "C",
    data_used_bytes BIGINT NOT NULL
);

CREATE INDEX schedule_runs_by_time ON schedule_runs (decided_at_us, id);
CREATE INDEX schedule_runs_by_schedule ON schedule_runs (schedule_id, decided_at_us);
