-- Destinations. The settings say where each is; here are its number and what must outlast the settings.
CREATE TABLE webhooks (
    webhook_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- The secret that was generated because the settings give none, sealed.
    secret BYTEA,
    created_at BIGINT NOT NULL
);

-- One message for one webhook. No foreign keys: they would cost a lookup a row on the hottest path.
CREATE TABLE deliveries (
    delivery_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id BIGINT NOT NULL,
    message_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    -- 'pending' or 'delivered'.
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    -- The HTTP status of the last attempt; NULL before the first, and when there was no answer.
    last_status BIGINT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    UNIQUE (message_id, webhook_id)
);
CREATE INDEX deliveries_pending ON deliveries (webhook_id, room_id, sequence) WHERE state = 'pending';

-- What each (webhook, room) still has to send: the unit of claiming, so that order holds in a room and a
-- slow room delays no other. pending_count is only ever added to and subtracted from, never counted anew
-- without the row being locked, so that a message stored while another is finished is not overlooked.
CREATE TABLE room_queues (
    webhook_id BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    pending_count BIGINT NOT NULL CHECK (pending_count >= 0),
    -- When to send next. While claimed, the end of the lease: then it is due again.
    due_at BIGINT NOT NULL,
    -- Failed attempts since the last success.
    failures BIGINT NOT NULL,
    -- 0 while nobody has claimed it.
    lease_until BIGINT NOT NULL,
    -- Grows with every claim and every outcome, so that each claim is settled at most once.
    lease_token BIGINT NOT NULL,
    PRIMARY KEY (webhook_id, room_id)
);
CREATE INDEX room_queues_due ON room_queues (webhook_id, due_at) WHERE pending_count > 0;
