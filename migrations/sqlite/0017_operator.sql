-- To-device messages that `coucou check` sent to our own device, as they came in: by push and by the key lane.
CREATE TABLE probes (
    nonce TEXT NOT NULL,
    source TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (nonce, source)
);

CREATE INDEX probes_by_time ON probes (seen_at);
