-- What is relayed. The payload is the JSON body of the webhook call, sealed.
CREATE TABLE messages (
    message_id TEXT PRIMARY KEY,
    event_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    -- Per room, from 1, without gaps.
    sequence BIGINT NOT NULL,
    type TEXT NOT NULL,
    network TEXT,
    direction TEXT NOT NULL,
    sender TEXT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    UNIQUE (room_id, sequence)
);
CREATE INDEX messages_event ON messages (event_id);
CREATE INDEX messages_created ON messages (created_at);
CREATE INDEX messages_network ON messages (network, created_at);
