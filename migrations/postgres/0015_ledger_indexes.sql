-- So that SQLite, which keeps no statistics, takes these indexes and not those that know less.
DROP INDEX pending_events_keyless;
CREATE INDEX pending_events_keyless ON pending_events (session_id, reason)
    WHERE state = 'ledger' AND reason = 'no_key';
DROP INDEX pending_events_untold;
CREATE INDEX pending_events_untold ON pending_events (state, received_at, position)
    WHERE state = 'ledger' AND notified_at IS NULL AND reason <> 'replay' AND reason <> 'untrusted_sender';
