CREATE TABLE blocked_direct (
    endpoint_id TEXT COLLATE "C" NOT NULL,
    engine      TEXT COLLATE "C" NOT NULL,
    found_at_us BIGINT NOT NULL,
    PRIMARY KEY (endpoint_id, engine)
);
