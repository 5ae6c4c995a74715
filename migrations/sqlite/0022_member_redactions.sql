-- Members who were banned or removed so that all they have said is taken back (MSC4293), while the messages are gone
-- through: a row is deleted with the last of them.
CREATE TABLE member_redactions (
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    -- The membership event, sealed.
    event BLOB NOT NULL,
    received_at BIGINT NOT NULL,
    -- The position of the last message that was gone through.
    position BIGINT NOT NULL,
    PRIMARY KEY (room_id, user_id)
);
