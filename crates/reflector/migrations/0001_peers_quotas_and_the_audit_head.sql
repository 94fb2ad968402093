-- Endpoint IDs are the 32 bytes of the public key, session ids the 16 bytes of the UUID. A day is a number of UTC days
-- since 1970.

CREATE TABLE peers (
    id            BLOB NOT NULL PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE,
    added_by      TEXT NOT NULL,
    added_unix_ms INTEGER NOT NULL
) STRICT;

-- Sessions that count against a peer's tests an hour.
CREATE TABLE tests (
    session         BLOB NOT NULL PRIMARY KEY,
    peer            BLOB NOT NULL,
    granted_unix_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX tests_by_time ON tests (granted_unix_ms);

-- Bytes that a running session may move. Written before the bytes flow, so that a crash can only charge too much.
CREATE TABLE leases (
    session BLOB NOT NULL,
    day     INTEGER NOT NULL,
    peer    BLOB NOT NULL,
    bytes   INTEGER NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (session, day)
) STRICT;

-- Bytes that sessions did move.
CREATE TABLE usage (
    day   INTEGER NOT NULL,
    peer  BLOB NOT NULL,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (day, peer)
) STRICT;

-- The last line of the audit log that anybody was told of: one row.
CREATE TABLE audit_head (
    one  INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    seq  INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
