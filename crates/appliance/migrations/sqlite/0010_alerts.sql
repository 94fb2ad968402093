-- The rules that watch what is measured. `definition` is a rule as JSON. `from_file` says that a file of
-- `packetparamedic apply` made it. `judged_until_us` is the time until which what was measured has been judged.
CREATE TABLE rules (
    id              TEXT PRIMARY KEY,
    appliance       TEXT NOT NULL,
    name            TEXT NOT NULL,
    definition      TEXT NOT NULL,
    enabled         BOOLEAN NOT NULL,
    from_file       BOOLEAN NOT NULL,
    added_at_us     BIGINT NOT NULL,
    judged_until_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX rules_by_name ON rules (lower(name));

-- An alert is open from the time at which its rule was broken until the rule holds again. It outlives its rule. `subject` is
-- the target or the monitor that it concerns; a rule has at most one open alert for each. `opening` and `closing` are what was
-- found then, as JSON.
CREATE TABLE alerts (
    id           TEXT PRIMARY KEY,
    appliance    TEXT NOT NULL,
    rule_id      TEXT NOT NULL,
    rule_name    TEXT NOT NULL,
    subject      TEXT NOT NULL,
    opened_at_us BIGINT NOT NULL,
    closed_at_us BIGINT,
    opening      TEXT NOT NULL,
    closing      TEXT
);

CREATE INDEX alerts_by_time ON alerts (opened_at_us, id);
CREATE UNIQUE INDEX open_alerts ON alerts (rule_id, subject) WHERE closed_at_us IS NULL;

-- The channels that carry messages. `definition` is a channel as JSON without its secrets; `secrets` is a JSON object of them,
-- which only the delivery reads.
CREATE TABLE channels (
    id          TEXT PRIMARY KEY,
    appliance   TEXT NOT NULL,
    name        TEXT NOT NULL,
    definition  TEXT NOT NULL,
    secrets     TEXT NOT NULL,
    enabled     BOOLEAN NOT NULL,
    from_file   BOOLEAN NOT NULL,
    added_at_us BIGINT NOT NULL
);

CREATE UNIQUE INDEX channels_by_name ON channels (lower(name));

-- What is to be said, once for each channel. The id is that which each channel gets; a repeated delivery has the same one.
-- `kind` is opened, closed or test; `content` is the message as JSON; a test has no alert.
CREATE TABLE messages (
    id            TEXT PRIMARY KEY,
    appliance     TEXT NOT NULL,
    alert_id      TEXT,
    kind          TEXT NOT NULL,
    content       TEXT NOT NULL,
    created_at_us BIGINT NOT NULL
);

CREATE INDEX messages_by_time ON messages (created_at_us, id);

-- `outcome` is due, delivered or given_up. A row outlives its channel, which then is given up.
CREATE TABLE deliveries (
    message_id    TEXT NOT NULL,
    channel_id    TEXT NOT NULL,
    channel_name  TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    attempts      BIGINT NOT NULL,
    next_at_us    BIGINT NOT NULL,
    decided_at_us BIGINT,
    reason        TEXT,
    PRIMARY KEY (message_id, channel_id)
);

CREATE INDEX due_deliveries ON deliveries (outcome, next_at_us);
