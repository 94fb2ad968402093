CREATE TABLE tokens (
    hash        TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT COLLATE "C" NOT NULL,
    scope       TEXT COLLATE "C" NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX tokens_by_name ON tokens (lower(name));

CREATE TABLE admin_password (
    salt       TEXT COLLATE "C" NOT NULL,
    hash       TEXT COLLATE "C" NOT NULL,
    memory_kib BIGINT NOT NULL,
    passes     BIGINT NOT NULL,
    set_at_us  BIGINT NOT NULL
);

CREATE TABLE logins (
    hash          TEXT COLLATE "C" PRIMARY KEY,
    expires_at_us BIGINT NOT NULL
);

CREATE TABLE setup_links (
    hash          TEXT COLLATE "C" PRIMARY KEY,
    expires_at_us BIGINT NOT NULL
);
