-- What the charts of the history show beside the medians: the 95th percentiles of the round trips, and the share of lost
-- probes (0 to 1, of the worse direction), by load. Copies out of the document.
ALTER TABLE runs ADD COLUMN rtt_idle_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN rtt_download_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN rtt_upload_p95_us BIGINT;
ALTER TABLE runs ADD COLUMN loss_idle DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN loss_download DOUBLE PRECISION;
ALTER TABLE runs ADD COLUMN loss_upload DOUBLE PRECISION;

-- A document that is no JSON stays as it is.
UPDATE runs SET
    rtt_idle_p95_us = json_extract(document, '$.latency.idle.rtt_us.p95'),
    rtt_download_p95_us = json_extract(document, '$.latency.download.rtt_us.p95'),
    rtt_upload_p95_us = json_extract(document, '$.latency.upload.rtt_us.p95'),
    loss_idle = COALESCE(
        MAX(COALESCE(json_extract(document, '$.latency.idle.loss_upload'), 0.0),
            COALESCE(json_extract(document, '$.latency.idle.loss_download'),
                     json_extract(document, '$.latency.idle.loss_upload'))),
        json_extract(document, '$.latency.idle.loss')),
    loss_download = COALESCE(
        MAX(COALESCE(json_extract(document, '$.latency.download.loss_upload'), 0.0),
            COALESCE(json_extract(document, '$.latency.download.loss_download'),
                     json_extract(document, '$.latency.download.loss_upload'))),
        json_extract(document, '$.latency.download.loss')),
    loss_upload = COALESCE(
        MAX(COALESCE(json_extract(document, '$.latency.upload.loss_upload'), 0.0),
            COALESCE(json_extract(document, '$.latency.upload.loss_download'),
                     json_extract(document, '$.latency.upload.loss_upload'))),
        json_extract(document, '$.latency.upload.loss'))
WHERE json_valid(document);

-- Everything that a chart needs: the documents beside it are large.
CREATE INDEX runs_of_charts ON runs (
    started_at_us, engine, peer, address, endpoint_id, download_bps, upload_bps, rtt_idle_us, rtt_download_us,
    rtt_upload_us, rtt_idle_p95_us, rtt_download_p95_us, rtt_upload_p95_us, loss_idle, loss_download, loss_upload
);
