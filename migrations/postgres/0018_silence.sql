-- When each network was heard of: a row for each hour in which something of it came. The empty network has the hours
-- during which coucou was there to hear.
CREATE TABLE network_hours (
    network TEXT NOT NULL,
    -- Hours since 1970.
    hour BIGINT NOT NULL,
    count BIGINT NOT NULL,
    -- When the last of them came.
    last_at BIGINT NOT NULL,
    PRIMARY KEY (network, hour)
);

-- What is wrong with bridges, and what was until lately.
CREATE TABLE bridge_alarms (
    -- 'no_messages', 'no_transactions', 'bot_left' or 'login_lost'.
    reason TEXT NOT NULL,
    -- What it is about: a network, a room, a bot with one of its logins; empty of 'no_transactions'.
    subject TEXT NOT NULL,
    network TEXT,
    room_id TEXT,
    bot TEXT,
    login TEXT,
    -- Of 'login_lost': the state and the error, as the bridge calls them.
    status TEXT,
    error TEXT,
    since BIGINT NOT NULL,
    told_at BIGINT NOT NULL,
    -- The message that told of it, or of its end.
    message_id TEXT NOT NULL,
    -- NULL while it is so.
    ended_at BIGINT,
    PRIMARY KEY (reason, subject)
);
CREATE INDEX bridge_alarms_active ON bridge_alarms (reason, told_at) WHERE ended_at IS NULL;
CREATE INDEX bridge_alarms_ended ON bridge_alarms (ended_at) WHERE ended_at IS NOT NULL;
