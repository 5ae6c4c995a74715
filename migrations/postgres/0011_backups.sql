-- Rooms whose keys were read from an account's key backup, and from which version of it.
CREATE TABLE backup_rooms (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    version TEXT NOT NULL,
    read_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, room_id)
);

-- Sessions that events on the ledger wait for, and when the key backups are to be asked for them again.
CREATE TABLE backup_lookups (
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    tries BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    PRIMARY KEY (room_id, session_id)
);
