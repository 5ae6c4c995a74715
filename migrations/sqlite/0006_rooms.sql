-- What is known of a room. Its state (names, members, bridge) is sealed.
CREATE TABLE rooms (
    room_id TEXT PRIMARY KEY,
    -- 'unknown' until the state was read, then 'yes' or 'no'.
    relay TEXT NOT NULL,
    network TEXT,
    bridge_bot TEXT,
    state BLOB,
    last_sequence BIGINT NOT NULL,
    -- When the room's state is to be read (again); NULL when there is no need.
    due_at BIGINT,
    tries BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX rooms_due ON rooms (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX rooms_bridge_bot ON rooms (bridge_bot) WHERE bridge_bot IS NOT NULL;
CREATE INDEX rooms_network ON rooms (network) WHERE network IS NOT NULL;

-- Which of our accounts is in which room, or invited to it.
CREATE TABLE room_accounts (
    room_id TEXT NOT NULL,
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    membership TEXT NOT NULL,
    inviter TEXT,
    -- When an invite is to be answered; NULL when there is nothing to do.
    due_at BIGINT,
    tries BIGINT NOT NULL,
    PRIMARY KEY (room_id, account_id)
);
CREATE INDEX room_accounts_due ON room_accounts (due_at) WHERE due_at IS NOT NULL;

-- Events that could not be relayed yet: 'queued' ones wait in the room's order for a short time, those on
-- the 'ledger' wait for their key alone. The event as it came is sealed.
CREATE TABLE pending_events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    room_id TEXT NOT NULL,
    session_id TEXT,
    sender TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    event BLOB NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    received_at BIGINT NOT NULL
);
CREATE INDEX pending_events_queued ON pending_events (room_id, position) WHERE state = 'queued';
CREATE INDEX pending_events_session ON pending_events (room_id, session_id, position);

-- Which event used a message index of a Megolm session: a second one is a replay.
CREATE TABLE megolm_indexes (
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    message_index BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    PRIMARY KEY (room_id, session_id, message_index)
);
