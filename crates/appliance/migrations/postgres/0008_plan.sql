-- What the contract with the provider promises, as JSON: at most one row, with the number 1. `from_file` says that a file of
-- `packetparamedic apply` made it: a file without a plan removes only such a one.
CREATE TABLE plan (
    number     BIGINT PRIMARY KEY CHECK (number = 1),
    appliance  TEXT NOT NULL,
    definition TEXT NOT NULL,
    from_file  BOOLEAN NOT NULL,
    set_at_us  BIGINT NOT NULL
);

-- The data of a month is a sum over its runs; the documents beside it are large.
CREATE INDEX runs_data_used ON runs (started_at_us, data_used_bytes);
