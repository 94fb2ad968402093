-- No row is older than these columns: the first version that used PostgreSQL had them.
ALTER TABLE runs ADD COLUMN appliance TEXT COLLATE "C";
ALTER TABLE runs ADD COLUMN has_series BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE schedules ADD COLUMN from_file BOOLEAN NOT NULL DEFAULT FALSE;

CREATE INDEX runs_with_series ON runs (started_at_us) WHERE has_series;
