-- Where a delivery waits: NULL in its room's queue; '*' among those that keep no order; else in the queue of the
-- request that it goes with, which is removed once it is empty.
ALTER TABLE deliveries ADD COLUMN queue TEXT;
DROP INDEX deliveries_pending;
CREATE INDEX deliveries_pending ON deliveries (webhook_id, COALESCE(queue, room_id), sequence)
    WHERE state = 'pending';
CREATE INDEX deliveries_shared ON deliveries (webhook_id, delivery_id) WHERE state = 'pending' AND queue = '*';

-- The number of the last message of the batch that was begun, so that it is the same when it is sent again.
ALTER TABLE room_queues ADD COLUMN batch_until BIGINT;

-- Secrets that were made by a rotation, sealed; the newest one has no end. What the settings say signs beside them
-- until settings_until, and alone again once it is not what it was (settings_digest, sealed).
CREATE TABLE webhook_secrets (
    webhook_id BIGINT NOT NULL,
    rotation BIGINT NOT NULL,
    secret BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    -- Until when it signs; NULL for the newest.
    retires_at BIGINT,
    PRIMARY KEY (webhook_id, rotation)
);
ALTER TABLE webhooks ADD COLUMN settings_digest BYTEA;
ALTER TABLE webhooks ADD COLUMN settings_until BIGINT;
