-- Devices that have said, over Olm, that they made a Megolm session. Whoever has a session's key can say so, and the
-- session itself tells no more than who said it last: the maker's own word is kept beside it.
CREATE TABLE megolm_claims (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    sender_key TEXT NOT NULL,
    claimed_at BIGINT NOT NULL,
    -- Sealed: the device as it was known then.
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id, user_id, sender_key)
);
CREATE INDEX megolm_claims_room ON megolm_claims (room_id);

-- In whose name a place of a session was used, where that was not the room's bridge, or not the bridge first.
CREATE TABLE megolm_index_claims (
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    message_index BIGINT NOT NULL,
    -- The user; empty when no claim was known.
    claimant TEXT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_id, session_id, message_index, claimant)
);
