-- The ledger of undecryptable events. What came is in received_at; tries counts attempts to decrypt since the
-- event left its room's order, and tried_at is the last of them.
ALTER TABLE pending_events ADD COLUMN tries BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pending_events ADD COLUMN tried_at BIGINT;
-- When the webhooks were told that the event cannot be decrypted.
ALTER TABLE pending_events ADD COLUMN notified_at BIGINT;
-- Of replays and forgeries no webhook is told.
CREATE INDEX pending_events_untold ON pending_events (received_at, position)
    WHERE state = 'ledger' AND notified_at IS NULL AND reason <> 'replay' AND reason <> 'untrusted_sender';
-- To see that a session which is known now belongs to another room.
CREATE INDEX pending_events_keyless ON pending_events (session_id) WHERE state = 'ledger' AND reason = 'no_key';
-- To leaf through the ledger, all of it, by room or by reason.
CREATE INDEX pending_events_ledger ON pending_events (position) WHERE state = 'ledger';
CREATE INDEX pending_events_room ON pending_events (room_id, position) WHERE state = 'ledger';
CREATE INDEX pending_events_reason ON pending_events (reason, position) WHERE state = 'ledger';
CREATE INDEX megolm_inbound_sessions_session ON megolm_inbound_sessions (session_id);

-- Room keys that were stored, by whichever way they came, or that their owner withholds: written with the key
-- itself, and gone once the events that wait for it were tried with it.
CREATE TABLE key_news (
    news_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL
);

-- Events that were taken back before they were relayed: nothing of them is relayed if they come (again).
CREATE TABLE redacted_events (
    room_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    redacted_at BIGINT NOT NULL,
    PRIMARY KEY (room_id, event_id)
);
CREATE INDEX redacted_events_at ON redacted_events (redacted_at);
