-- How much of its leases a running session had used when that was last written, and how much more a crash charges. A
-- session without a row, as earlier versions left it, is charged its leases in full.
CREATE TABLE recorded_use (
    session BLOB NOT NULL PRIMARY KEY,
    used    INTEGER NOT NULL CHECK (used >= 0),
    surge   INTEGER NOT NULL CHECK (surge >= 0)
) STRICT;
