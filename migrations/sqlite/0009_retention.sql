-- When the content was deleted for its age; NULL while it is there. What stays of the row tells a repeat.
ALTER TABLE messages ADD COLUMN purged_at BIGINT;
-- When its event was taken back; the content is gone from the payload then.
ALTER TABLE messages ADD COLUMN redacted_at BIGINT;
-- Of an edit: the event that it replaces. When that one is taken back, the content of both goes.
ALTER TABLE messages ADD COLUMN replaces TEXT;
CREATE INDEX messages_content ON messages (created_at, message_id) WHERE purged_at IS NULL;
CREATE INDEX messages_replaces ON messages (replaces) WHERE replaces IS NOT NULL;

-- A column that is added can have no default of the time, and a SQLite store has no other version beside it.
ALTER TABLE megolm_indexes ADD COLUMN used_at BIGINT NOT NULL DEFAULT 0;
UPDATE megolm_indexes SET used_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000;
CREATE INDEX megolm_indexes_used ON megolm_indexes (used_at);

-- What is left of the indexes that were deleted for their age: the highest of each session. An event at or
-- below it whose index is not known may be a replay, and is taken for one.
CREATE TABLE megolm_floors (
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    message_index BIGINT NOT NULL,
    PRIMARY KEY (room_id, session_id)
);

CREATE INDEX olm_hashes_created ON olm_hashes (created_at);
CREATE INDEX pending_events_received ON pending_events (received_at) WHERE state = 'ledger';
