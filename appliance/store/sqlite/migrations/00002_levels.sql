-- Passwords, second approvers and the question what became of a serial.

-- +goose Up
PRAGMA user_version = 2;

ALTER TABLE client ADD COLUMN cert BLOB;
ALTER TABLE invitation ADD COLUMN roles TEXT NOT NULL DEFAULT '[]'; -- JSON array of strings

ALTER TABLE decision ADD COLUMN dry INTEGER NOT NULL DEFAULT 0 CHECK (dry IN (0, 1));
ALTER TABLE decision ADD COLUMN first INTEGER REFERENCES decision (ref); -- that this one is the second approval of
ALTER TABLE decision ADD COLUMN role TEXT; -- of a pending decision (result 3): who may approve it, and until when
ALTER TABLE decision ADD COLUMN expires_us INTEGER;
ALTER TABLE decision ADD COLUMN final_result INTEGER CHECK (final_result IS NULL OR final_result IN (0, 1) AND result = 3);
ALTER TABLE decision ADD COLUMN final_reason INTEGER;
ALTER TABLE decision ADD COLUMN final_us INTEGER;
ALTER TABLE decision ADD COLUMN asked_result INTEGER CHECK (asked_result IN (0, 1, 3)); -- what was told of the serial asked about
ALTER TABLE decision ADD COLUMN asked_reason INTEGER;

-- +goose StatementBegin
CREATE TRIGGER decision_final_once BEFORE UPDATE OF final_result, final_reason, final_us ON decision
WHEN OLD.final_result IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'a decision that is final is not changed');
END;
-- +goose StatementEnd

-- Password attempts, each stored before it is checked.
CREATE TABLE attempt (
    client     INTEGER NOT NULL REFERENCES client (ref),
    counter    INTEGER NOT NULL CHECK (counter BETWEEN 0 AND 4294967295),
    attempt    INTEGER NOT NULL CHECK (attempt BETWEEN 0 AND 2),
    random     BLOB    NOT NULL CHECK (length(random) = 8),
    m3         BLOB    NOT NULL CHECK (length(m3) = 32),
    answered   INTEGER NOT NULL DEFAULT 0 CHECK (answered IN (0, 1)), -- with "retry"
    tries_left INTEGER NOT NULL, -- as answered, or as it will be
    begun_us   INTEGER NOT NULL,
    PRIMARY KEY (client, counter, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE guard (
    client   INTEGER PRIMARY KEY REFERENCES client (ref),
    wrong    INTEGER NOT NULL CHECK (wrong >= 0), -- consecutive tries that were not right
    recent   TEXT    NOT NULL, -- JSON array of times: of the newest of them, oldest first
    until_us INTEGER
) STRICT;

-- A count of wrong tries rises by one or goes back to zero, whoever writes it.
-- +goose StatementBegin
CREATE TRIGGER guard_counts BEFORE UPDATE OF wrong ON guard
WHEN NEW.wrong <> 0 AND NEW.wrong <> OLD.wrong + 1
BEGIN
    SELECT RAISE(ABORT, 'a password guard does not go back');
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER guard_not_deleted BEFORE DELETE ON guard
BEGIN
    SELECT RAISE(ABORT, 'a password guard is not deleted');
END;
-- +goose StatementEnd
