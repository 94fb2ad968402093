-- Lines of the audit log that a change of the peers owes. Written in the change's own transaction, and removed once the
-- line is on disk: a crash in between leaves the row, and the next start writes the line. `after_seq` is the number of
-- the last line that was acknowledged before: the line that is owed can only stand behind it.
CREATE TABLE outbox (
    id        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    after_seq INTEGER NOT NULL,
    event     TEXT NOT NULL
) STRICT;

-- Written to learn whether the disk can be written again: one row.
CREATE TABLE probe (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    tries INTEGER NOT NULL
) STRICT;
