-- Seals: every record from which authority flows carries a MAC over all of it. Until
-- countersignd migrate has verified and sealed what is there, they are NULL.

-- +goose Up
PRAGMA user_version = 7;

CREATE TABLE head (
    name TEXT PRIMARY KEY CHECK (name IN ('head', 'invitations')),
    body BLOB NOT NULL, -- det-CBOR
    seal BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- What restricts a client.
CREATE TABLE restraint (
    client   INTEGER PRIMARY KEY REFERENCES client (ref),
    highest  INTEGER NOT NULL CHECK (highest BETWEEN -1 AND 4294967295), -- spent counter
    wrong    INTEGER NOT NULL CHECK (wrong >= 0), -- consecutive tries that were not right
    recent   TEXT    NOT NULL, -- JSON array of times: of the newest of them, oldest first
    until_us INTEGER,
    begun    BLOB, -- CBOR: [[counter, attempts], ...]
    windows  BLOB, -- CBOR: [[service, period, start, currency, amount, count], ...]
    seal     BLOB
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER restraint_rises BEFORE UPDATE OF highest, wrong ON restraint
WHEN NEW.highest < OLD.highest OR NEW.wrong <> 0 AND NEW.wrong <> OLD.wrong AND NEW.wrong <> OLD.wrong + 1
BEGIN
    SELECT RAISE(ABORT, 'a counter does not go back');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER restraint_not_deleted BEFORE DELETE ON restraint
BEGIN
    SELECT RAISE(ABORT, 'what restricts a client is not deleted');
END;
-- +goose StatementEnd

ALTER TABLE client ADD COLUMN seal BLOB;
ALTER TABLE device ADD COLUMN seal BLOB;
ALTER TABLE invitation ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE invitation ADD COLUMN seal BLOB;
ALTER TABLE attempt ADD COLUMN seal BLOB;
ALTER TABLE policy ADD COLUMN seal BLOB;
ALTER TABLE key ADD COLUMN seal BLOB;
ALTER TABLE setting ADD COLUMN seal BLOB;
ALTER TABLE admin ADD COLUMN seal BLOB;
ALTER TABLE change ADD COLUMN seal BLOB;

ALTER TABLE decision ADD COLUMN first_client BLOB; -- ids of the decision that this one is the second approval of
ALTER TABLE decision ADD COLUMN first_serial BLOB;
ALTER TABLE decision ADD COLUMN charges BLOB; -- CBOR: [[service, period, start, currency, amount], ...]
ALTER TABLE decision ADD COLUMN seal BLOB;

INSERT INTO restraint (client, highest, wrong, recent, until_us)
    SELECT c.ref, c.highest, coalesce(g.wrong, 0), coalesce(g.recent, '[]'), g.until_us FROM client c LEFT JOIN guard g ON g.client = c.ref;

UPDATE decision SET
    first_client = (SELECT c.id FROM decision f JOIN client c ON c.ref = f.client WHERE f.ref = decision.first),
    first_serial = (SELECT unhex(printf('%08X', f.counter) || hex(f.random)) FROM decision f WHERE f.ref = decision.first)
WHERE first IS NOT NULL;

-- A seal is made anew when its key is rotated, whatever has ended.
DROP TRIGGER key_is_final;
DROP TRIGGER change_goes_on;
DROP TRIGGER decision_final_once;
DROP TRIGGER admin_not_deleted; -- until what is nobody's has gone

-- +goose StatementBegin
CREATE TRIGGER key_is_final
BEFORE UPDATE OF not_before_us, not_after_us, cert, root, origin, tokens, revision, activated_us, retired_us, suspended_us, compromised_us, destroyed_us, sealed, sealed_for ON key
WHEN OLD.destroyed_us IS NOT NULL OR OLD.compromised_us IS NOT NULL AND NEW.compromised_us IS NULL
BEGIN
    SELECT RAISE(ABORT, 'a compromised key stays so, and a destroyed one is not changed');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER change_goes_on BEFORE UPDATE OF id, document, state, reason, created_us, expires_us, ended_us, required, signed ON change
WHEN OLD.state NOT IN ('open', 'taken') OR NEW.state = 'open' OR NEW.document <> OLD.document OR NEW.id <> OLD.id
BEGIN
    SELECT RAISE(ABORT, 'a change request that ended stays as it is, and none is opened again');
END;
-- +goose StatementEnd
