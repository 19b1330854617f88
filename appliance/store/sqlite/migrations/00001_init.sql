-- Times are microseconds since 1970 in UTC (columns *_us), NULL where there is
-- none. Rows that grow without end have rising keys, so that inserts append.

-- +goose Up
PRAGMA application_id = 1329672526; -- "OA1N"
PRAGMA user_version = 1;

CREATE TABLE client (
    ref         INTEGER PRIMARY KEY,
    id          BLOB    NOT NULL UNIQUE CHECK (length(id) = 8),
    name        TEXT    NOT NULL UNIQUE,
    signing_key BLOB    NOT NULL CHECK (length(signing_key) = 33),
    uv_key      BLOB    CHECK (length(uv_key) = 33),
    verifier    BLOB,
    status      INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3),
    roles       TEXT    NOT NULL, -- JSON array of strings
    version     INTEGER NOT NULL CHECK (version > 0),
    mac         BLOB,
    highest     INTEGER NOT NULL CHECK (highest BETWEEN -1 AND 4294967295),
    created_us  INTEGER
) STRICT;

CREATE TABLE device (
    ref        INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL UNIQUE CHECK (length(id) = 8),
    name       TEXT    NOT NULL UNIQUE,
    spiffe_id  TEXT    NOT NULL UNIQUE,
    display    TEXT    NOT NULL,
    floor      INTEGER NOT NULL,
    status     INTEGER NOT NULL CHECK (status BETWEEN 1 AND 3),
    version    INTEGER NOT NULL CHECK (version > 0),
    created_us INTEGER
) STRICT;

-- A phone knows a device by the first 4 bytes of its id.
CREATE UNIQUE INDEX device_handle ON device (substr(id, 1, 4));

CREATE TABLE invitation (
    code       BLOB    PRIMARY KEY CHECK (length(code) = 32), -- SHA-256 of the activation code
    kind       TEXT    NOT NULL CHECK (kind IN ('client', 'device')),
    name       TEXT    NOT NULL,
    display    TEXT    NOT NULL,
    floor      INTEGER NOT NULL,
    created_us INTEGER,
    expires_us INTEGER,
    used_us    INTEGER,
    request    BLOB CHECK (length(request) = 32),
    response   BLOB
) STRICT;

CREATE INDEX invitation_open ON invitation (kind, name) WHERE used_us IS NULL;

CREATE TABLE decision (
    ref              INTEGER PRIMARY KEY,
    client           INTEGER NOT NULL REFERENCES client (ref),
    counter          INTEGER NOT NULL CHECK (counter BETWEEN 0 AND 4294967295),
    random           BLOB    NOT NULL CHECK (length(random) = 8),
    attempt          INTEGER NOT NULL,
    m3               BLOB    NOT NULL CHECK (length(m3) = 32),
    device           INTEGER NOT NULL REFERENCES device (ref),
    transaction_id   BLOB    NOT NULL CHECK (length(transaction_id) = 8),
    result           INTEGER NOT NULL,
    reason           INTEGER NOT NULL, -- what the client is told; the payload holds what the device is told
    payload          BLOB    NOT NULL,
    decided_us       INTEGER NOT NULL,
    performed        INTEGER CHECK (performed IN (0, 1)), -- the device's report
    reported_us      INTEGER,
    UNIQUE (client, counter)
) STRICT;

CREATE UNIQUE INDEX decision_approved ON decision (transaction_id) WHERE result = 1;

-- What a window of a limit has been charged, and by which decision, so that it
-- can be given back.
CREATE TABLE used (
    client    INTEGER NOT NULL REFERENCES client (ref),
    service   INTEGER NOT NULL,
    period_s  INTEGER NOT NULL, -- length of the window
    window_us INTEGER NOT NULL, -- its start
    amount    INTEGER NOT NULL CHECK (amount >= 0), -- minor units
    count     INTEGER NOT NULL CHECK (count >= 0),
    PRIMARY KEY (client, service, period_s, window_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE charge (
    decision  INTEGER NOT NULL REFERENCES decision (ref),
    service   INTEGER NOT NULL,
    period_s  INTEGER NOT NULL,
    window_us INTEGER NOT NULL,
    amount    INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (decision, service, period_s, window_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE policy (
    version      INTEGER PRIMARY KEY,
    document     BLOB,
    activated_us INTEGER
) STRICT;

CREATE TABLE key (
    name          TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    id            BLOB    NOT NULL CHECK (length(id) = 20),
    public        BLOB,
    not_before_us INTEGER,
    not_after_us  INTEGER,
    cert          BLOB,
    created_us    INTEGER,
    PRIMARY KEY (name, version)
) STRICT;

CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value BLOB
) STRICT;

CREATE TABLE record (
    sequence INTEGER PRIMARY KEY, -- without gaps from 1: rows are never deleted
    at_us    INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    subject  TEXT    NOT NULL,
    salt     BLOB    NOT NULL CHECK (length(salt) = 16),
    body     BLOB    NOT NULL
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER record_not_changed BEFORE UPDATE ON record
BEGIN
    SELECT RAISE(ABORT, 'audit records are not changed');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER record_not_deleted BEFORE DELETE ON record
BEGIN
    SELECT RAISE(ABORT, 'audit records are not deleted');
END;
-- +goose StatementEnd
