-- The device that measured a run (its Endpoint ID), and whether the document has the series of its intervals, which are
-- kept for a shorter time. Which schedules were made by a file of `packetparamedic apply`: a file removes only those.
ALTER TABLE runs ADD COLUMN appliance TEXT;
ALTER TABLE runs ADD COLUMN has_series BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE schedules ADD COLUMN from_file BOOLEAN NOT NULL DEFAULT FALSE;

-- A document that is no JSON stays as it is, and can still be printed.
UPDATE runs SET appliance = CASE WHEN json_valid(document) THEN json_extract(document, '$.appliance.endpoint_id') END;
UPDATE runs SET has_series = TRUE WHERE document LIKE '%"intervals"%' OR document LIKE '%"tcp": {%';

CREATE INDEX runs_with_series ON runs (started_at_us) WHERE has_series;
