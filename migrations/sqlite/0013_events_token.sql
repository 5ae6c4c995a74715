-- Up to where the timelines of the account's rooms were compared with what was pushed: a token of /sync.
ALTER TABLE accounts ADD COLUMN events_token TEXT;
