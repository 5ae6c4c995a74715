-- The order in which messages were stored, over all rooms: what a reader who was away goes on from. A message's
-- position is drawn from `positions` in the transaction that stores it, which locks that row until it commits: so
-- no message becomes visible behind one with a higher position. A sequence of the database's would not do.
CREATE TABLE positions (
    name TEXT PRIMARY KEY,
    last BIGINT NOT NULL,
    -- When the last one was drawn: later positions never have earlier times, whatever clocks say.
    last_at BIGINT NOT NULL
);
-- NULL only while a version that knows no positions still writes; numbered when a newer one takes over.
ALTER TABLE messages ADD COLUMN position BIGINT;
UPDATE messages SET position = n.position
FROM (SELECT message_id, ROW_NUMBER() OVER (ORDER BY created_at, room_id, sequence) AS position FROM messages) AS n
WHERE messages.message_id = n.message_id;
INSERT INTO positions (name, last, last_at)
SELECT 'messages', COALESCE(MAX(position), 0), COALESCE(MAX(created_at), 0) FROM messages;

CREATE UNIQUE INDEX messages_position ON messages (position);
CREATE INDEX messages_network_position ON messages (network, position);
CREATE INDEX messages_room_position ON messages (room_id, position);
-- The types that are rare among all.
CREATE INDEX messages_type_position ON messages (type, position)
    WHERE type <> 'message.created' AND type <> 'reaction.created';
DROP INDEX messages_network;

-- How many messages were stored in each five minutes, by network and by whether they had to be decrypted.
CREATE TABLE message_counts (
    bucket BIGINT NOT NULL,
    network TEXT NOT NULL,
    encrypted BIGINT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (bucket, network, encrypted)
);

-- How many room keys there are of each room, kept by triggers: counting them would read them all.
CREATE TABLE room_key_counts (
    room_id TEXT PRIMARY KEY,
    count BIGINT NOT NULL
);
INSERT INTO room_key_counts (room_id, count)
SELECT room_id, COUNT(*) FROM megolm_inbound_sessions GROUP BY room_id;

CREATE TRIGGER room_keys_added AFTER INSERT ON megolm_inbound_sessions
BEGIN
    INSERT INTO room_key_counts (room_id, count) VALUES (NEW.room_id, 1)
    ON CONFLICT (room_id) DO UPDATE SET count = room_key_counts.count + 1;
END;
CREATE TRIGGER room_keys_deleted AFTER DELETE ON megolm_inbound_sessions
BEGIN
    UPDATE room_key_counts SET count = count - 1 WHERE room_id = OLD.room_id;
END;

CREATE INDEX rooms_relay ON rooms (relay, network);
CREATE INDEX inbox_source ON inbox (source, inbox_id);
CREATE INDEX pending_events_lately ON pending_events (received_at, reason) WHERE state = 'ledger';
-- Deliveries that are still to be made, or given up: few among all.
CREATE INDEX deliveries_open ON deliveries (webhook_id, state, delivery_id, created_at) WHERE state <> 'delivered';
