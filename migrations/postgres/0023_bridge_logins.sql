-- The owner's logins on the networks, as believed bridges have stated them: what the ghost of one says is the owner's.
CREATE TABLE bridge_logins (
    bot TEXT NOT NULL,
    -- The login's id on the network.
    login TEXT NOT NULL,
    -- The room in which it was first stated.
    room_id TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (bot, login)
);

-- Who is answerable for a pinned bridge: the maker of its first room, or that user's server.
ALTER TABLE bridges ADD COLUMN creator TEXT;
