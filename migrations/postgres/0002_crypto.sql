-- The crypto store of each account: what matrix-sdk-crypto keeps. Columns that name a room, a user, a device
-- or a key are in clear, so that they can be looked up; `data`, `pickle` and `value` are sealed.

-- One of a kind: the Olm account, the private identity, backup keys, tokens.
CREATE TABLE crypto_values (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    name TEXT NOT NULL,
    value BYTEA NOT NULL,
    PRIMARY KEY (account_id, name)
);

CREATE TABLE crypto_custom_values (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    name TEXT NOT NULL,
    value BYTEA NOT NULL,
    PRIMARY KEY (account_id, name)
);

-- Locks that matrix-sdk-crypto asks for by name; the generation grows with every change of hands.
CREATE TABLE crypto_locks (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    generation BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, name)
);

CREATE TABLE olm_sessions (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    sender_key TEXT NOT NULL,
    session_id TEXT NOT NULL,
    pickle BYTEA NOT NULL,
    PRIMARY KEY (account_id, sender_key, session_id)
);

-- Olm messages that were decrypted, to know a replay.
CREATE TABLE olm_hashes (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    sender_key TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, sender_key, hash)
);

-- Room keys. Operators query room_id, session_id and created_at (when the key was first received).
CREATE TABLE megolm_inbound_sessions (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    sender_key TEXT NOT NULL,
    sender_data_type BIGINT NOT NULL,
    backed_up BIGINT NOT NULL,
    pickle BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id)
);
CREATE INDEX megolm_inbound_sessions_room ON megolm_inbound_sessions (room_id);
CREATE INDEX megolm_inbound_sessions_created ON megolm_inbound_sessions (created_at);
CREATE INDEX megolm_inbound_sessions_sender
    ON megolm_inbound_sessions (account_id, sender_key, sender_data_type, session_id);
CREATE INDEX megolm_inbound_sessions_to_back_up
    ON megolm_inbound_sessions (account_id, room_id, session_id) WHERE backed_up = 0;

CREATE TABLE megolm_outbound_sessions (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    pickle BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- Room keys that their owner says it will not share.
CREATE TABLE megolm_withheld (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id, session_id)
);

CREATE TABLE crypto_devices (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, user_id, device_id)
);

-- Public cross-signing identities.
CREATE TABLE crypto_identities (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    user_id TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, user_id)
);

-- Users whose devices are kept up to date; dirty: the homeserver has to be asked again.
CREATE TABLE crypto_tracked_users (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    user_id TEXT NOT NULL,
    dirty BIGINT NOT NULL,
    PRIMARY KEY (account_id, user_id)
);

-- Requests for room keys and secrets that we have sent or will send.
CREATE TABLE crypto_key_requests (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    request_id TEXT NOT NULL,
    info TEXT NOT NULL,
    sent_out BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, request_id)
);
CREATE INDEX crypto_key_requests_info ON crypto_key_requests (account_id, info);
CREATE INDEX crypto_key_requests_unsent ON crypto_key_requests (account_id) WHERE sent_out = 0;

-- Secrets that were sent to us and not yet taken.
CREATE TABLE crypto_secrets (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, name, position)
);

CREATE TABLE crypto_room_settings (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- Room key history shared with us on invite (MSC4268): what came, from whom.
CREATE TABLE crypto_key_bundles (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id, sender)
);

-- Rooms for which such a bundle is still awaited.
CREATE TABLE crypto_pending_key_bundles (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- Rooms whose keys have all been fetched from the key backup.
CREATE TABLE crypto_downloaded_rooms (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    PRIMARY KEY (account_id, room_id)
);
