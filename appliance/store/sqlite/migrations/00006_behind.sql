-- The change request that stands behind a record, by its id.

-- +goose Up
PRAGMA user_version = 6;

ALTER TABLE invitation ADD COLUMN change BLOB CHECK (change IS NULL OR length(change) = 8);
ALTER TABLE admin ADD COLUMN change BLOB CHECK (change IS NULL OR length(change) = 8);
ALTER TABLE policy ADD COLUMN change BLOB CHECK (change IS NULL OR length(change) = 8);
