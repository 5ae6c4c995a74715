-- Room keys that events on the ledger wait for, and whom we asked for them. A forwarded key is taken only from
-- the device of such a row, for its session.
CREATE TABLE key_requests (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    -- The device that is asked and its Curve25519 key; '*' and '' stand for our own other devices.
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    sender_key TEXT NOT NULL,
    request_id TEXT NOT NULL,
    -- How often it was asked.
    tries BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id, user_id, device_id)
);
CREATE INDEX key_requests_due ON key_requests (next_at);
CREATE INDEX key_requests_session ON key_requests (room_id, session_id);
CREATE INDEX key_requests_sender_key ON key_requests (account_id, sender_key);

-- What became of forwarded keys: 'accepted', or why they were refused.
CREATE TABLE key_forwards (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    outcome TEXT NOT NULL,
    forward_count BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, outcome)
);

-- Keys of an export file, handed over in parts to whoever works the crypto; sealed until they are taken in.
CREATE TABLE key_imports (
    part_id INTEGER PRIMARY KEY AUTOINCREMENT,
    import_id TEXT NOT NULL,
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    -- NULL once they are taken in.
    keys BLOB,
    created_at BIGINT NOT NULL,
    taken_at BIGINT,
    new_count BIGINT NOT NULL DEFAULT 0,
    better_count BIGINT NOT NULL DEFAULT 0,
    known_count BIGINT NOT NULL DEFAULT 0,
    unwanted_count BIGINT NOT NULL DEFAULT 0,
    bad_count BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX key_imports_waiting ON key_imports (part_id) WHERE taken_at IS NULL;
CREATE INDEX key_imports_import ON key_imports (import_id);
CREATE INDEX key_imports_taken ON key_imports (taken_at) WHERE taken_at IS NOT NULL;
