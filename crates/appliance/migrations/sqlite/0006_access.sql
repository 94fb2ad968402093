-- Who may use the API. A token is 256 random bits; `hash` is its SHA-256 in hexadecimal digits. `scope` is read, run or
-- admin.
CREATE TABLE tokens (
    hash        TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    scope       TEXT NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX tokens_by_name ON tokens (lower(name));

-- The administrator's password (argon2id; salt and hash in hexadecimal digits): at most one row.
CREATE TABLE admin_password (
    salt       TEXT NOT NULL,
    hash       TEXT NOT NULL,
    memory_kib BIGINT NOT NULL,
    passes     BIGINT NOT NULL,
    set_at_us  BIGINT NOT NULL
);

-- The logins with that password, and the link by which it is set, by the SHA-256 of their secrets.
CREATE TABLE logins (
    hash          TEXT PRIMARY KEY,
    expires_at_us BIGINT NOT NULL
);

CREATE TABLE setup_links (
    hash          TEXT PRIMARY KEY,
    expires_at_us BIGINT NOT NULL
);
