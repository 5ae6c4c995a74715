-- Data keys, each sealed under a key derived from the pickle key.
CREATE TABLE seal_keys (
    key_id BIGINT PRIMARY KEY,
    salt BLOB NOT NULL,
    wrapped BLOB NOT NULL,
    created_at BIGINT NOT NULL
);

-- Who may do what only one process may do; the fence grows with every change of hands.
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    fence BIGINT NOT NULL,
    lease_until BIGINT NOT NULL
);

-- The Matrix users that coucou reads as. A lost device is retired, never reused.
CREATE TABLE accounts (
    account_id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    role TEXT NOT NULL,
    sync_token TEXT,
    created_at BIGINT NOT NULL,
    retired_at BIGINT,
    UNIQUE (user_id, device_id)
);
CREATE UNIQUE INDEX accounts_in_use ON accounts (user_id) WHERE retired_at IS NULL;
