-- Up to where the timelines of the account's rooms were compared with what was pushed: a token of /sync.
ALTER TABLE accounts ADD COLUMN events_token TEXT;

-- Rows of lower rank are worked through first: 0 for events that were not pushed, because what follows them in
-- their rooms may wait already, and the row has that as well, in order.
ALTER TABLE inbox ADD COLUMN rank BIGINT NOT NULL DEFAULT 1;
DROP INDEX inbox_waiting;
CREATE INDEX inbox_waiting ON inbox (rank, inbox_id) WHERE processed_at IS NULL;
