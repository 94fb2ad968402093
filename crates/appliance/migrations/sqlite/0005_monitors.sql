-- Monitors. A removed one keeps its row: a monitor that the service adds by itself (of the gateway, or of the paired
-- reflector `peer`) is not added again. `number` is the short key of its probes.
CREATE TABLE monitors (
    number      BIGINT PRIMARY KEY,
    id          TEXT NOT NULL,
    appliance   TEXT NOT NULL,
    name        TEXT NOT NULL,
    target      TEXT NOT NULL,
    peer        TEXT,
    interval_ms BIGINT NOT NULL,
    enabled     BOOLEAN NOT NULL,
    removed     BOOLEAN NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX monitors_by_name ON monitors (lower(name)) WHERE NOT removed;

-- What became of the probes of `span` minutes (1, an hour, a UTC day) from `minute` on, in minutes since 1970.
-- `round_trips` is an encoded histogram, so that percentiles merge. The key begins with the time: all monitors together
-- then change few pages a minute.
CREATE TABLE monitor_rows (
    span        BIGINT NOT NULL,
    minute      BIGINT NOT NULL,
    monitor     BIGINT NOT NULL,
    count       BIGINT NOT NULL,
    lost        BIGINT NOT NULL,
    under_load  BIGINT NOT NULL,
    min_us      BIGINT,
    max_us      BIGINT,
    round_trips BLOB NOT NULL,
    PRIMARY KEY (span, minute, monitor)
) WITHOUT ROWID;

-- Outages. `failed` and `reachable` are names of monitors as a JSON list. Without `end_known` the service ended while
-- the outage lasted, and `ended_at_us` is when it was last seen.
CREATE TABLE outages (
    id          TEXT PRIMARY KEY,
    appliance   TEXT NOT NULL,
    began_at_us BIGINT NOT NULL,
    ended_at_us BIGINT,
    end_known   BOOLEAN NOT NULL,
    scope       TEXT NOT NULL,
    failed      TEXT NOT NULL,
    reachable   TEXT NOT NULL
);

CREATE INDEX outages_by_time ON outages (began_at_us);
