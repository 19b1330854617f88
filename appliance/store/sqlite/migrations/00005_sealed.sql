-- A copy of each key, sealed for the backup key while the key was born.

-- +goose Up
PRAGMA user_version = 5;

ALTER TABLE key ADD COLUMN sealed BLOB;
ALTER TABLE key ADD COLUMN sealed_for BLOB CHECK (sealed_for IS NULL OR length(sealed_for) = 33); -- point of the backup key

-- A copy goes when its key is destroyed, and is never replaced.
-- +goose StatementBegin
CREATE TRIGGER key_copy_is_final BEFORE UPDATE OF sealed, sealed_for ON key
WHEN NEW.sealed IS NOT NULL AND NEW.sealed IS NOT OLD.sealed OR NEW.sealed_for IS NOT NULL AND NEW.sealed_for IS NOT OLD.sealed_for
BEGIN
    SELECT RAISE(ABORT, 'a sealed copy is made with its key and never replaced');
END;
-- +goose StatementEnd
