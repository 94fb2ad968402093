-- The audit log is two hash chains: 'main', and 'refusals' with what others cause at will. `seq` and `hash` are those of
-- a chain's last acknowledged line, `base_seq` and `base_hash` those of the line before the first one that is kept: 0
-- and zeros while no line was trimmed or moved away. `writes` makes every write of a row change it.
CREATE TABLE audit_chains (
    chain     TEXT NOT NULL PRIMARY KEY,
    seq       INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    base_seq  INTEGER NOT NULL,
    base_hash BLOB NOT NULL,
    writes    INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO audit_chains (chain, seq, hash, base_seq, base_hash)
SELECT 'main', seq, hash, 0, zeroblob(32) FROM audit_head;

DROP TABLE audit_head;
