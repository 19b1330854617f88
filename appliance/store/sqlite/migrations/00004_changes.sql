-- Administrators, and the changes that they countersign.

-- +goose Up
PRAGMA user_version = 4;

CREATE TABLE admin (
    id         BLOB    PRIMARY KEY CHECK (length(id) = 8),
    name       TEXT    NOT NULL UNIQUE,
    public     BLOB    NOT NULL UNIQUE CHECK (length(public) = 33),
    status     INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3),
    version    INTEGER NOT NULL CHECK (version > 0),
    mac        BLOB,
    created_us INTEGER
) STRICT;

CREATE TABLE change (
    ref        INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE CHECK (length(id) = 8),
    document   BLOB    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('open', 'taken', 'executed', 'failed', 'expired', 'withdrawn')),
    reason     TEXT    NOT NULL,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    ended_us   INTEGER,
    required   INTEGER NOT NULL, -- as it was when it was taken or ended
    signed     TEXT    NOT NULL  -- JSON array of names, the same
) STRICT;

CREATE TABLE change_signature (
    change    INTEGER NOT NULL REFERENCES change (ref),
    signer    BLOB    NOT NULL CHECK (length(signer) = 8), -- zeros: the admin socket
    signature BLOB,
    at_us     INTEGER NOT NULL,
    PRIMARY KEY (change, signer)
) STRICT, WITHOUT ROWID;

-- +goose StatementBegin
CREATE TRIGGER change_not_deleted BEFORE DELETE ON change
BEGIN
    SELECT RAISE(ABORT, 'a change request is never forgotten');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER change_goes_on BEFORE UPDATE ON change
WHEN OLD.state NOT IN ('open', 'taken') OR NEW.state = 'open' OR NEW.document <> OLD.document OR NEW.id <> OLD.id
BEGIN
    SELECT RAISE(ABORT, 'a change request that ended stays as it is, and none is opened again');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER admin_not_deleted BEFORE DELETE ON admin
BEGIN
    SELECT RAISE(ABORT, 'an administrator is never forgotten');
END;
-- +goose StatementEnd
