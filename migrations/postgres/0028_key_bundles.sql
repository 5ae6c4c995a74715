-- Key bundles that were sent to us with an invite (MSC4268) and are still to be fetched, and when. Those that came before
-- this table are fetched, too.
CREATE TABLE key_bundle_fetches (
    account_id BIGINT NOT NULL REFERENCES accounts (account_id),
    room_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    due_at BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    PRIMARY KEY (account_id, room_id, sender)
);
CREATE INDEX key_bundle_fetches_due ON key_bundle_fetches (due_at);

INSERT INTO key_bundle_fetches (account_id, room_id, sender, due_at, tries)
SELECT account_id, room_id, sender, 0, 0 FROM crypto_key_bundles;
