-- Bridge bots that were believed when they were first seen. Those of the settings are not here.
CREATE TABLE bridges (
    bot TEXT PRIMARY KEY,
    -- Whom the bot may speak for, with * for anything; NULL when its name does not tell.
    ghosts TEXT,
    -- The protocol that it stated.
    protocol TEXT,
    -- The room in which it was first seen.
    room_id TEXT NOT NULL,
    pinned_at BIGINT NOT NULL
);

-- Which bot a state key of m.bridge belongs to, in whatever room.
CREATE TABLE bridge_keys (
    state_key TEXT PRIMARY KEY,
    bot TEXT NOT NULL,
    room_id TEXT NOT NULL,
    pinned_at BIGINT NOT NULL
);

-- Bots that claimed a room and were not believed.
CREATE TABLE bridge_conflicts (
    room_id TEXT NOT NULL,
    bot TEXT NOT NULL,
    -- The bot that is believed there; NULL when none is.
    believed TEXT,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (room_id, bot)
);
CREATE INDEX bridge_conflicts_seen ON bridge_conflicts (seen_at);

-- The devices, and the identities behind them, with which bridge bots encrypted.
CREATE TABLE bridge_devices (
    bot TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- Curve25519, base64.
    identity_key TEXT NOT NULL,
    -- Ed25519, base64; empty when the device is not cross-signed.
    master_key TEXT NOT NULL,
    -- What was new about it: 'first', 'signed', 'new_device', 'device_replaced', 'identity_changed'.
    change TEXT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (bot, device_id, identity_key, master_key)
);
