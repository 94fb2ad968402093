-- Which monitors were made by a file of `packetparamedic apply`: a file removes only those.
ALTER TABLE monitors ADD COLUMN from_file BOOLEAN NOT NULL DEFAULT FALSE;

-- Minutes of monitors that the clock could not date yet: the boot in which they were measured, and their begin in
-- microseconds since that boot. They become rows of monitor_rows once the clock is trusted in the same boot.
CREATE TABLE undated_minutes (
    boot_id     TEXT NOT NULL,
    began_us    BIGINT NOT NULL,
    monitor     BIGINT NOT NULL,
    count       BIGINT NOT NULL,
    lost        BIGINT NOT NULL,
    under_load  BIGINT NOT NULL,
    min_us      BIGINT,
    max_us      BIGINT,
    round_trips BLOB NOT NULL,
    PRIMARY KEY (boot_id, began_us, monitor)
) WITHOUT ROWID;

-- Outages that the clock could not date yet, with times in microseconds since that boot; otherwise as in outages.
CREATE TABLE undated_outages (
    id        TEXT PRIMARY KEY,
    boot_id   TEXT NOT NULL,
    began_us  BIGINT NOT NULL,
    ended_us  BIGINT,
    end_known BOOLEAN NOT NULL,
    scope     TEXT NOT NULL,
    failed    TEXT NOT NULL,
    reachable TEXT NOT NULL
);
