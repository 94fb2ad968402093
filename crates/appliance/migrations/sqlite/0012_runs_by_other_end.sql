-- The ways in which a run names its other end, each in the order of time: a list of the runs against one of many ends reads
-- those alone.
CREATE INDEX runs_by_peer ON runs (lower(peer), started_at_us, id);
CREATE INDEX runs_by_address ON runs (address, started_at_us, id);
CREATE INDEX runs_by_endpoint ON runs (endpoint_id, started_at_us, id);
