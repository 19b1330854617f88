-- What the seals replace: record MACs, and the tables that a restraint is made of.

-- +goose Up
PRAGMA user_version = 8;

DROP TRIGGER guard_counts;
DROP TRIGGER guard_not_deleted;
DROP TABLE guard;
DROP TABLE used;
DROP TABLE charge;

ALTER TABLE client DROP COLUMN mac;
ALTER TABLE client DROP COLUMN highest;
ALTER TABLE admin DROP COLUMN mac;

CREATE TABLE decision_sealed (
    ref            INTEGER PRIMARY KEY,
    client         INTEGER NOT NULL REFERENCES client (ref),
    counter        INTEGER NOT NULL CHECK (counter BETWEEN 0 AND 4294967295),
    random         BLOB    NOT NULL CHECK (length(random) = 8),
    attempt        INTEGER NOT NULL,
    m3             BLOB    NOT NULL CHECK (length(m3) = 32),
    transaction_id BLOB    NOT NULL CHECK (length(transaction_id) = 8), -- as in the payload, to find it by
    result         INTEGER NOT NULL,
    reason         INTEGER NOT NULL, -- what the client is told; the payload holds what the device is told
    payload        BLOB    NOT NULL,
    decided_us     INTEGER NOT NULL,
    dry            INTEGER NOT NULL CHECK (dry IN (0, 1)),
    first_client   BLOB, -- ids of the decision that this one is the second approval of
    first_serial   BLOB,
    role           TEXT, -- of a pending decision (result 3): who may approve it, and until when
    expires_us     INTEGER,
    final_result   INTEGER CHECK (final_result IS NULL OR final_result IN (0, 1) AND result = 3),
    final_reason   INTEGER,
    final_us       INTEGER,
    asked_result   INTEGER CHECK (asked_result IN (0, 1, 3)), -- what was told of the serial asked about
    asked_reason   INTEGER,
    charges        BLOB, -- CBOR: [[service, period, start, currency, amount], ...]
    performed      INTEGER NOT NULL DEFAULT 0 CHECK (performed IN (0, 1)), -- the device's report
    reported_us    INTEGER,
    seal           BLOB,
    UNIQUE (client, counter)
) STRICT;

INSERT INTO decision_sealed SELECT ref, client, counter, random, attempt, m3, transaction_id, result, reason, payload, decided_us,
    dry, first_client, first_serial, role, expires_us, final_result, final_reason, final_us, asked_result, asked_reason,
    charges, coalesce(performed, 0), reported_us, seal FROM decision ORDER BY ref;
DROP TABLE decision;
ALTER TABLE decision_sealed RENAME TO decision;

CREATE UNIQUE INDEX decision_approved ON decision (transaction_id) WHERE result = 1;

-- +goose StatementBegin
CREATE TRIGGER decision_final_once BEFORE UPDATE OF final_result, final_reason, final_us ON decision
WHEN OLD.final_result IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'a decision that is final is not changed');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER admin_not_deleted BEFORE DELETE ON admin
BEGIN
    SELECT RAISE(ABORT, 'an administrator is never forgotten');
END;
-- +goose StatementEnd
