-- The life of a key: when it came into use, when it ended, where it is.

-- +goose Up
PRAGMA user_version = 3;

ALTER TABLE key ADD COLUMN root INTEGER NOT NULL DEFAULT 0; -- number of the root that certified it
ALTER TABLE key ADD COLUMN origin TEXT NOT NULL DEFAULT 'generated';
ALTER TABLE key ADD COLUMN tokens TEXT NOT NULL DEFAULT '[]'; -- JSON array of token labels
ALTER TABLE key ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
ALTER TABLE key ADD COLUMN activated_us INTEGER; -- in the future: it is to come into use then
ALTER TABLE key ADD COLUMN retired_us INTEGER;
ALTER TABLE key ADD COLUMN suspended_us INTEGER;
ALTER TABLE key ADD COLUMN compromised_us INTEGER;
ALTER TABLE key ADD COLUMN destroyed_us INTEGER;

-- What a ceremony made so far: root 1 certified everything, and each epoch comes
-- into use when it begins. Root 2 waits for its turn.
UPDATE key SET root = 1 WHERE cert IS NOT NULL;
UPDATE key SET activated_us = coalesce(not_before_us, created_us) WHERE NOT (name = 'root' AND version > 1);

-- +goose StatementBegin
CREATE TRIGGER key_not_deleted BEFORE DELETE ON key
BEGIN
    SELECT RAISE(ABORT, 'a key version is never forgotten');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER key_is_itself BEFORE UPDATE OF name, version, id, public, created_us ON key
BEGIN
    SELECT RAISE(ABORT, 'a key version is never another key');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER key_is_final BEFORE UPDATE ON key
WHEN OLD.destroyed_us IS NOT NULL OR OLD.compromised_us IS NOT NULL AND NEW.compromised_us IS NULL
BEGIN
    SELECT RAISE(ABORT, 'a compromised key stays so, and a destroyed one is not changed');
END;
-- +goose StatementEnd
