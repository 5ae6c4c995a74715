-- What came in, as it came, until it is worked through; afterwards the row without its body tells a repeat.
-- A row that was worked through and still has its body was set aside: it failed again and again.
CREATE TABLE inbox (
    inbox_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 'push': a transaction of the homeserver; 'lane': a page of /sync for one account; 'state': a room's.
    source TEXT NOT NULL,
    account_id BIGINT REFERENCES accounts (account_id),
    txn_id TEXT,
    content_hash BLOB NOT NULL,
    body BLOB,
    received_at BIGINT NOT NULL,
    -- Tries at this row on its own, after a failure.
    tries BIGINT NOT NULL DEFAULT 0,
    processed_at BIGINT
);
CREATE UNIQUE INDEX inbox_repeat ON inbox (txn_id, content_hash) WHERE txn_id IS NOT NULL;
CREATE INDEX inbox_waiting ON inbox (inbox_id) WHERE processed_at IS NULL;
CREATE INDEX inbox_processed ON inbox (processed_at) WHERE processed_at IS NOT NULL;
