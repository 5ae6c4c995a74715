-- Rooms of which a reading of the state has said that they are not relayed, and since when: until a second reading says so
-- an hour later, what came of them is kept. NULL for the other ones, those included for which that is settled.
ALTER TABLE rooms ADD COLUMN unrelayed_since BIGINT;
-- The believed bridge bot whose management room it is: not relayed, but what the bot says of its logins is read there, so
-- its room keys are kept.
ALTER TABLE rooms ADD COLUMN managed_by TEXT;
