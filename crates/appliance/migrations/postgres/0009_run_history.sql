-- What the charts of the history show beside the medians: the 95th percentiles of the round trips, and the share of lost
-- probes (0 to 1, of the worse direction), by load. Copies out of the document. No row is older than these columns: the first
-- version that used PostgreSQL had them.
ALTER TABLE runs ADD COLUMN rtt_idle_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN rtt_download_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN rtt_upload_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN loss_idle DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN loss_download DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN loss_upload DOUBLE PRECISION;

-- Everything that a chart needs: the documents beside it are large.
CREATE INDEX runs_of_charts ON runs (started_at_us, engine) INCLUDE (
    peer, address, endpoint_id, download_bps, upload_bps, rtt_idle_us, rtt_download_us, rtt_upload_us, rtt_idle_p95_us,
    rtt_download_p95_us, rtt_upload_p95_us, loss_idle, loss_download, loss_upload
);
