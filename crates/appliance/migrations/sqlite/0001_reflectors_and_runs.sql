-- The reflectors this appliance is paired with, and the runs that were measured.
-- Written so that SQLite and PostgreSQL read the same. Times are microseconds since 1970, UTC.

CREATE TABLE reflectors (
    endpoint_id  TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    address      TEXT NOT NULL,
    paired_at_us BIGINT NOT NULL
);

-- Attic and attic are one name.
CREATE UNIQUE INDEX reflectors_by_name ON reflectors (lower(name));

-- `document` is what was printed, to the byte; the other columns are copies out of it, for listing and searching.
-- A run outlives the pairing it was measured with: no reference to `reflectors`.
CREATE TABLE runs (
    id                   TEXT PRIMARY KEY,
    started_at_us        BIGINT NOT NULL,
    provider             TEXT NOT NULL,
    engine               TEXT NOT NULL,
    peer                 TEXT,
    address              TEXT,
    endpoint_id          TEXT,
    download_bps         BIGINT,
    upload_bps           BIGINT,
    rtt_idle_us          BIGINT,
    rtt_download_us      BIGINT,
    rtt_upload_us        BIGINT,
    bufferbloat_download TEXT,
    bufferbloat_upload   TEXT,
    data_used_bytes      BIGINT NOT NULL,
    complete             BOOLEAN NOT NULL,
    document             TEXT NOT NULL
);

CREATE INDEX runs_by_start ON runs (started_at_us);
