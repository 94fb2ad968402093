CREATE TABLE monitors (
    number      BIGINT PRIMARY KEY,
    id          TEXT COLLATE "C" NOT NULL,
    appliance   TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    target      TEXT COLLATE "C" NOT NULL,
    peer        TEXT COLLATE "C",
    interval_ms BIGINT NOT NULL,
    enabled     BOOLEAN NOT NULL,
    removed     BOOLEAN NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX monitors_by_name ON monitors (lower(name)) WHERE NOT removed;

CREATE TABLE monitor_rows (
    span        BIGINT NOT NULL,
    minute      BIGINT NOT NULL,
    monitor     BIGINT NOT NULL,
    count       BIGINT NOT NULL,
    lost        BIGINT NOT NULL,
    under_load  BIGINT NOT NULL,
    min_us      BIGINT,
    max_us      BIGINT,
    round_trips BYTEA NOT NULL,
    PRIMARY KEY (span, minute, monitor)
);

CREATE TABLE outages (
    id          TEXT COLLATE "C" PRIMARY KEY,
    appliance   TEXT COLLATE "C" NOT NULL,
    began_at_us BIGINT NOT NULL,
    ended_at_us BIGINT,
    end_known   BOOLEAN NOT NULL,
    scope       TEXT COLLATE "C" NOT NULL,
    failed      TEXT COLLATE "C" NOT NULL,
    reachable   TEXT COLLATE "C" NOT NULL
);

CREATE INDEX outages_by_time ON outages (began_at_us, id);
