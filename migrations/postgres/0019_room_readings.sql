-- Rooms that are read on page by page, in the homeserver's order, while what is pushed of them waits behind.
CREATE TABLE room_readings (
    room_id TEXT NOT NULL PRIMARY KEY,
    -- Who reads.
    account_id BIGINT NOT NULL,
    -- 'join', 'gap' or 'check'
    cause TEXT NOT NULL,
    -- Where the next page begins; NULL: where the room does.
    from_token TEXT,
    -- The account's join, until it was read: what comes before it was said before the account was there.
    join_id TEXT,
    -- The event that was the newest when the reading began, with which it ends; NULL before that is known, empty when
    -- there is none.
    until_id TEXT,
    read_count BIGINT NOT NULL,
    missing_count BIGINT NOT NULL,
    -- NULL once all is read: the worker lets the room go on, and deletes the row.
    due_at BIGINT,
    tries BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX room_readings_due ON room_readings (due_at) WHERE due_at IS NOT NULL;

-- Events of relayed rooms that are no messages, so that a comparison does not miss them.
CREATE TABLE dismissed_events (
    event_id TEXT NOT NULL PRIMARY KEY,
    room_id TEXT NOT NULL,
    dismissed_at BIGINT NOT NULL
);
CREATE INDEX dismissed_events_at ON dismissed_events (dismissed_at);

-- Queued events are relayed by rank, then by position: 0 waited before a reading began, 1 was read and overtaken by what was
-- relayed already, 2 was read, 3 was pushed.
ALTER TABLE pending_events ADD COLUMN rank BIGINT NOT NULL DEFAULT 3;
DROP INDEX pending_events_queued;
CREATE INDEX pending_events_queued ON pending_events (room_id, rank, position) WHERE state = 'queued';
