-- Sums in sliding windows, in the record of what restricts a client:
--   restraint.windows  CBOR: [[service, period, currency, [number, amount, count, step, amount, count, ...]], ...]
--                      beside what releases before charged: [service, period, start, currency, amount, count]
--   decision.charges   start is the start of a bucket
-- The tables stay as they are. The sealed manifest keeps programs of before from reading the new form.

-- +goose Up
PRAGMA user_version = 9;
