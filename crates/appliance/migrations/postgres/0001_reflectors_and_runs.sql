-- The reflectors this appliance is paired with, and the runs that were measured. The tables of migrations/sqlite, which
-- explains them, in the dialect of PostgreSQL: texts compare byte by byte and lower() changes ASCII letters alone, as in
-- SQLite, whatever the locale of the database is.

CREATE TABLE reflectors (
    endpoint_id  TEXT COLLATE "C" PRIMARY KEY,
    name         TEXT COLLATE "C" NOT NULL,
    address      TEXT COLLATE "C" NOT NULL,
    paired_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX reflectors_by_name ON reflectors (lower(name));

CREATE TABLE runs (
    id                   TEXT COLLATE "C" PRIMARY KEY,
    started_at_us        BIGINT NOT NULL,
    provider             TEXT COLLATE "C" NOT NULL,
    engine               TEXT COLLATE "C" NOT NULL,
    peer                 TEXT COLLATE "C",
    address              TEXT COLLATE "C",
    endpoint_id          TEXT COLLATE "C",
    download_bps         BIGINT,
    upload_bps           BIGINT,
    rtt_idle_us          BIGINT,
    rtt_download_us      BIGINT,
    rtt_upload_us        BIGINT,
    bufferbloat_download TEXT COLLATE "C",
    bufferbloat_upload   TEXT COLLATE "C",
    data_used_bytes      BIGINT NOT NULL,
    complete             BOOLEAN NOT NULL,
    document             TEXT COLLATE "C" NOT NULL
);

-- With the id, which orders the runs of one microsecond.
CREATE INDEX runs_by_start ON runs (started_at_us, id);
