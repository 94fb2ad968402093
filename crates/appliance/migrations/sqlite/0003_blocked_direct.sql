-- When a test last found a reflector's data ports blocked from this device, by engine: TCP and UDP can differ.
CREATE TABLE blocked_direct (
    endpoint_id TEXT NOT NULL,
    engine      TEXT NOT NULL,
    found_at_us BIGINT NOT NULL,
    PRIMARY KEY (endpoint_id, engine)
);
