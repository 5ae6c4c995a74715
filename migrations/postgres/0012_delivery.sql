-- What an attempt came to, beside its status. last_error is one word, such as 'timeout' or 'status'. A delivery is
-- 'dead' from now on when its last attempt failed, too; it stays, with the reason.
ALTER TABLE deliveries ADD COLUMN last_error TEXT;
ALTER TABLE deliveries ADD COLUMN last_duration_ms BIGINT;
ALTER TABLE deliveries ADD COLUMN last_attempt_at BIGINT;
CREATE INDEX deliveries_dead ON deliveries (webhook_id, delivery_id) WHERE state = 'dead';

-- When the next attempt counts as one of the schedule's: those made before, to see whether the webhook is back,
-- do not bring the end nearer.
ALTER TABLE room_queues ADD COLUMN scheduled_at BIGINT NOT NULL DEFAULT 0;
-- Until when the receiver asked to be left alone with this room.
ALTER TABLE room_queues ADD COLUMN hold_until BIGINT NOT NULL DEFAULT 0;

-- A webhook that answered 410 gets nothing until it is enabled again, or has another address.
ALTER TABLE webhooks ADD COLUMN disabled_at BIGINT;
ALTER TABLE webhooks ADD COLUMN disabled_reason TEXT;
-- SHA-256 of the URL in the settings, in base64.
ALTER TABLE webhooks ADD COLUMN url_digest TEXT;
