-- The tokens of the API. A token is 256 random bits; `hash` is its SHA-256 in hexadecimal digits. `scope` is read, run or
-- admin.
CREATE TABLE tokens (
    hash        TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    scope       TEXT NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX tokens_by_name ON tokens (lower(name));
