package hostile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/store/head"
	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// finding is an attack that once succeeded, or a neighbour of it. Each is a case for every
// operation that it names.
type finding struct {
	name       string
	table      string // that it is a proof about
	alter      func(*world.World) rows.Alteration
	operations []string
	live       bool
}

// findings of one who writes to the database. They name tables and columns, as nothing
// else here does.
var findings = []finding{
	{"1: a refusal is made an approval", "decision", forgedDecision("refused", protocol.ResultApproved), []string{"again: refused", "restore, then a refusal again", "status of a refusal"}, false},
	{"1: the same while it runs", "decision", forgedDecision("refused", protocol.ResultApproved), []string{"again: refused", "again: refused, when alice is revoked"}, true},
	{"1: what waits for a second approver is made an approval", "decision", forgedDecision("pending", protocol.ResultApproved), []string{"again: pending"}, false},
	{"1: what a second approver refused is made an approval", "decision", forgedDecision("second of denied", protocol.ResultApproved), []string{"again: second that refused"}, false},
	{"1: what was denied waits again", "decision", statement("UPDATE decision SET final_result = NULL, final_reason = NULL, final_us = NULL WHERE final_result = 0"), []string{"second of what was denied"}, false},
	{"2: the UV key of a thief, and no certificate", "client", stolenUV, []string{"again: by the thief of a phone"}, false},
	{"2: the same while it runs", "client", stolenUV, []string{"again: by the thief of a phone"}, true},
	{"3: an invitation of an approver", "invitation", forgedInvitation("client"), []string{"enrol by a made-up code"}, false},
	{"3: an invitation of a device", "invitation", forgedInvitation("device"), []string{"enrol a device by a made-up code"}, true},
	{"3: a used invitation is open again", "invitation", statement("UPDATE invitation SET used_us = NULL, request = NULL, response = NULL, name = name || '-2', number = " + openNumber), []string{"enrol by a used code", "enrol a device by a used code"}, false},
	{"3: an expired invitation lives on", "invitation", statement("UPDATE invitation SET expires_us = expires_us + 86400000000, number = " + openNumber), []string{"enrol by an expired code"}, false},
	{"3: an invitation gets a role", "invitation", statement(`UPDATE invitation SET roles = '["approver"]' WHERE used_us IS NULL`), []string{"enrol by an open code"}, false},
	{"4: a root of the attacker's own", "setting", foreignRoot, []string{"trust document", "invite a phone"}, false},
	{"5: a trigger lends bob a role", "client", lentRole, []string{"second by bob", "restore, then first and second by bob"}, false},
	{"5: the same while it runs", "client", lentRole, []string{"second by bob"}, true},
	{"5: a trigger forgets what was spent", "restraint", statement("CREATE TRIGGER hostile AFTER UPDATE OF windows ON restraint BEGIN UPDATE restraint SET windows = NULL; END"), []string{"limit: paid in parts"}, true},
	{"5: a trigger forgets what was guessed", "restraint", statement("CREATE TRIGGER hostile AFTER INSERT ON attempt BEGIN UPDATE restraint SET wrong = 0, recent = '[]', until_us = NULL; END"), []string{"password, locked after guesses"}, true},
	{"6: rob and bob swap names", "client", swapped("client", "rob", "bob"), []string{"revoke rob", "suspend rob"}, false},
	{"6: the safe and shed swap names", "device", swapped("device", "safe", "shed"), []string{"revoke the safe"}, false},
	{"6: a backup nobody voted for is executed", "change", executed("backup"), []string{"key backup without votes"}, false},
	{"6: a device nobody voted for is taken", "change", taken("open"), []string{"start, and go on with what was taken"}, false},
	{"6: the gate has another name", "device", statement("UPDATE device SET display = 'The safe' WHERE name = 'gate'"), []string{"level 1 by alice"}, false},
	{"6: the safe has a lower floor", "device", statement("UPDATE device SET floor = 1 WHERE name = 'safe'"), []string{"level 1 at the safe, floor 2"}, false},
	{"6: a revoked device is active", "device", statement("UPDATE device SET status = 1 WHERE name = 'shed'"), []string{"renew revoked shed's certificate", "level 1 at revoked shed"}, false},
	{"6: limits used are forgotten", "restraint", statement("UPDATE restraint SET windows = NULL"), []string{"limit: more than is left"}, false},
	{"6: more is given back than was charged", "decision", doubledCharges, []string{"limit: given back"}, false},
	{"6: a report is forgotten", "decision", statement("UPDATE decision SET performed = 0, reported_us = NULL"), []string{"limit: given back after a report"}, false},
	{"6: the lenient policy", "policy", lenientPolicy, []string{"start", "first at level 4", "ask for a device"}, false},
	{"6: a password is not locked", "restraint", statement("UPDATE restraint SET wrong = 0, recent = '[]', until_us = NULL"), []string{"password, right but locked"}, false},
	{"6: a guess is one that was begun", "attempt", begunAttempt, []string{"again: another password in place of a guess"}, false},
	{"6: a guess that was begun is not known", "attempt", statement("DELETE FROM attempt"), []string{"again: another password in place of a guess", "again: a password that was locked"}, false},
	{"6: the policy that was replaced is in force", "head", earlierPolicy, []string{"start", "first at level 4"}, false},
	{"6: every invitation is open", "head", reopenedSet, []string{"enrol by a used code", "enrol by an expired code", "enrol a device by a used code"}, false},
	{"6: another trust domain", "setting", otherDomain, []string{"enrol a device by an open code", "renew the gate's certificate"}, false},
	{"6: a suspended administrator is active", "admin", statement("UPDATE admin SET status = 1"), []string{"suspended ben signs", "start"}, false},
	{"6: a vote of the admin socket", "change_signature", forgedVote, []string{"start, and go on with what was taken"}, false},
	{"6: votes of an administrator who is none", "change_signature", forgedAdmin, []string{"start, and go on with what was taken"}, false},
	{"7: administrators as they once were", "admin", putBack("admin"), []string{"start", "suspended ben signs"}, false},
	{"7: keys and settings as they once were", "key", putBack("key", "setting"), []string{"trust document", "start"}, false},
	{"7: policies as they once were", "policy", putBack("policy"), []string{"start", "first at level 4"}, false},
	{"7: all as it once was, but for the anchor", rows.Everything, putBack(), []string{"start", "suspended ben signs"}, false},
	{"6: a retired key is not retired", "key", statement("UPDATE key SET retired_us = NULL"), []string{"trust document"}, false},
}

// directed runs the findings.
func (s *stage) directed(ctx context.Context) {
	var cases []attempt
	for _, f := range findings {
		a := f.alter(s.World)
		a.Table, a.Row = f.table, f.name
		for _, name := range f.operations {
			cases = append(cases, attempt{a, named(name), f.live})
		}
	}
	s.all(ctx, cases, func(v verdict) {
		s.table.add(v)
		s.Say("%-8s %s: %s %v", v.outcome, v.attempt.Row, v.operation.name, v.extra)
		if *printAll {
			s.Say("         %v; %s", v.err, v.heard)
		}
		s.Check(v.outcome != granted, "%s: %s", v.attempt.Row, v.operation.name)
	})
}

// putBack puts tables, or all of them, back as they were before anybody left.
func putBack(tables ...string) func(*world.World) rows.Alteration {
	return func(w *world.World) rows.Alteration {
		then, err := rows.Read(context.Background(), w.Earlier[0])
		if err != nil {
			return rows.Func("", func(context.Context, *sql.Tx) error { return err })
		}
		return rows.RollBack(0, then, tables...)
	}
}

func statement(texts ...string) func(*world.World) rows.Alteration {
	return func(*world.World) rows.Alteration { return rows.SQL("", texts...) }
}

// execs runs statements with arguments.
func execs(ctx context.Context, tx *sql.Tx, text string, args ...any) error {
	res, err := tx.ExecContext(ctx, text, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(fmt.Errorf("%s: no row", text), err)
	}
	return nil
}

// forgedDecision changes the stored decision of a dialog and no signature.
func forgedDecision(dialog string, to protocol.Result) func(*world.World) rows.Alteration {
	return func(w *world.World) rows.Alteration {
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error { return forge(ctx, tx, w.Dialogs[dialog], to) })
	}
}

func forge(ctx context.Context, tx *sql.Tx, d *world.Dialog, to protocol.Result) error {
	const which = " WHERE counter = ? AND random = ?"
	counter, random := int64(d.Serial.Counter()), d.Serial[4:]
	var payload []byte
	if err := tx.QueryRowContext(ctx, "SELECT payload FROM decision"+which, counter, random).Scan(&payload); err != nil {
		return err
	}
	decision, err := receipt.Parse(payload)
	if err != nil {
		return err
	}
	decision.Result, decision.Lifetime, decision.Factors = to, honestLifetime, protocol.Factors(1<<uint(decision.Level)-1)
	decision.Reason, _ = receipt.ReasonFor(to)
	sum := sha256.Sum256(d.M3)
	return execs(ctx, tx, "UPDATE decision SET result = ?, reason = 0, payload = ?, m3 = ?, role = NULL, expires_us = NULL, final_result = NULL, final_reason = NULL, final_us = NULL"+which,
		int64(to), decision.Marshal(), sum[:], counter, random)
}

// stolenUV gives alice's row the UV key of the thief of her phone, and the thief's
// approval a decision.
func stolenUV(w *world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		_, req, err := w.Phones["thief"].EnrolRequest(ctx, w.Codes["made up"])
		if err != nil {
			return err
		}
		err = execs(ctx, tx, "UPDATE client SET uv_key = ?, cert = NULL WHERE id = ?", req.UVKey[:], w.Phones["thief"].ID[:])
		return errors.Join(err, forge(ctx, tx, w.Dialogs["stolen"], protocol.ResultApproved))
	})
}

func forgedInvitation(kind string) func(*world.World) rows.Alteration {
	return func(w *world.World) rows.Alteration {
		sum := sha256.Sum256([]byte(w.Codes["made up"].String()))
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
			return execs(ctx, tx, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number) VALUES (?, ?, 'eve', 'gate', 1, ?, ?, '["approver"]', `+openNumber+`)`,
				sum[:], kind, w.Now.UnixMicro(), w.Now.Add(time.Hour).UnixMicro())
		})
	}
}

// lentRole: the MAC of bob's row is checked before a password is counted, and the role is
// looked at after it.
func lentRole(*world.World) rows.Alteration {
	return rows.SQL("",
		`CREATE TRIGGER hostile_lend AFTER INSERT ON attempt BEGIN UPDATE client SET roles = '["approver","uv"]' WHERE name = 'bob'; END`,
		`CREATE TRIGGER hostile_back AFTER INSERT ON decision BEGIN UPDATE client SET roles = '["uv"]' WHERE name = 'bob'; END`)
}

func swapped(table, a, b string) func(*world.World) rows.Alteration {
	return statement(
		fmt.Sprintf("UPDATE %s SET name = 'parked' WHERE name = '%s'", table, a),
		fmt.Sprintf("UPDATE %s SET name = '%s' WHERE name = '%s'", table, a, b),
		fmt.Sprintf("UPDATE %s SET name = '%s' WHERE name = 'parked'", table, b))
}

func executed(which string) func(*world.World) rows.Alteration {
	return func(w *world.World) rows.Alteration {
		id := w.Changes[which].Hash.ID()
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
			return execs(ctx, tx, `UPDATE change SET state = 'executed', required = 1, signed = '["local"]', ended_us = ? WHERE id = ?`, w.Now.UnixMicro(), id[:])
		})
	}
}

func taken(which string) func(*world.World) rows.Alteration {
	return func(w *world.World) rows.Alteration {
		id := w.Changes[which].Hash.ID()
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
			return execs(ctx, tx, `UPDATE change SET state = 'taken', required = 1 WHERE id = ?`, id[:])
		})
	}
}

// forgedVote takes a request that waits, and adds a vote of the admin socket that is none.
func forgedVote(w *world.World) rows.Alteration {
	id := w.Changes["open"].Hash.ID()
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return errors.Join(
			execs(ctx, tx, `UPDATE change SET state = 'taken' WHERE id = ?`, id[:]),
			execs(ctx, tx, `INSERT INTO change_signature (change, signer, signature, at_us) SELECT ref, x'0102030405060708', x'00', created_us FROM change WHERE id = ?`, id[:]))
	})
}

// forgedAdmin makes mallory an administrator who voted.
func forgedAdmin(w *world.World) rows.Alteration {
	id, mallory := w.Changes["open"].Hash.ID(), w.Operators["mallory"]
	signer := change.SignerOf(mallory.Public)
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		vote, err := mallory.Sign(ctx, w.Changes["open"].Hash)
		return errors.Join(err,
			execs(ctx, tx, "INSERT INTO admin (id, name, public, status, version, created_us, seal) SELECT ?, 'mallory', ?, 1, 1, created_us, seal FROM admin WHERE name = 'ann'", signer[:], mallory.Public[:]),
			execs(ctx, tx, "UPDATE change SET state = 'taken' WHERE id = ?", id[:]),
			execs(ctx, tx, "INSERT INTO change_signature (change, signer, signature, at_us) SELECT ref, ?, ?, created_us FROM change WHERE id = ?", signer[:], vote, id[:]))
	})
}

func lenientPolicy(w *world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return execs(ctx, tx, "UPDATE policy SET document = ?, change = NULL WHERE version = 2", w.Lenient)
	})
}

// begunAttempt has a guess look like the one that was counted before.
func begunAttempt(w *world.World) rows.Alteration {
	d := w.Dialogs["guessed anew"]
	sum := sha256.Sum256(d.M3)
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return execs(ctx, tx, "UPDATE attempt SET m3 = ?, answered = 0 WHERE counter = ? AND random = ?", sum[:], int64(d.Serial.Counter()), d.Serial[4:])
	})
}

// openNumber selects the number of an open invitation.
const openNumber = "(SELECT number FROM invitation WHERE name = 'nora')"

// doubledCharges has more to give back than was charged.
func doubledCharges(w *world.World) rows.Alteration {
	d := w.Dialogs["paid 5"]
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		var packed []byte
		err := tx.QueryRowContext(ctx, "SELECT charges FROM decision WHERE counter = ? AND random = ?", int64(d.Serial.Counter()), d.Serial[4:]).Scan(&packed)
		if err != nil {
			return err
		}
		var charges [][]any
		if err := cbor.Unmarshal(packed, &charges); err != nil {
			return err
		}
		for _, c := range charges {
			amount, ok := c[len(c)-1].(uint64)
			if !ok {
				return errors.New("a charge without an amount")
			}
			c[len(c)-1] = 2 * amount
		}
		return execs(ctx, tx, "UPDATE decision SET charges = ? WHERE counter = ? AND random = ?", encoded(charges), int64(d.Serial.Counter()), d.Serial[4:])
	})
}

// reopenedSet has each invitation that ever was be open.
func reopenedSet(*world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return alterHead(ctx, tx, "invitations", func(body []byte) ([]byte, error) {
			set, err := head.ParseOpenSet(body)
			if err != nil {
				return nil, err
			}
			set.Base, set.Bits = 0, bytes.Repeat([]byte{0xff}, int(set.Next/8)+1)
			return set.Marshal(), nil
		})
	})
}

// earlierPolicy has the policy that was replaced be the active one.
func earlierPolicy(*world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		var document []byte
		if err := tx.QueryRowContext(ctx, "SELECT document FROM policy WHERE version = 1").Scan(&document); err != nil {
			return err
		}
		return alterHead(ctx, tx, "head", func(body []byte) ([]byte, error) {
			h, err := head.Parse(body)
			h.Policy, h.PolicyHash = 1, sha256.Sum256(document)
			return h.Marshal(), err
		})
	})
}

func alterHead(ctx context.Context, tx *sql.Tx, name string, alter func([]byte) ([]byte, error)) error {
	var body []byte
	err := tx.QueryRowContext(ctx, "SELECT body FROM head WHERE name = ?", name).Scan(&body)
	if err == nil {
		body, err = alter(body)
	}
	if err != nil {
		return err
	}
	return execs(ctx, tx, "UPDATE head SET body = ? WHERE name = ?", body, name)
}

// otherDomain names the appliance of another trust domain: devices get certificates of it.
func otherDomain(*world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		own := keyring.Settings{Domain: "other.example"}.Values()
		found, err := tx.QueryContext(ctx, "SELECT name FROM setting WHERE CAST(value AS TEXT) = ?", world.Domain)
		if err != nil {
			return err
		}
		var name string
		for found.Next() {
			err = errors.Join(err, found.Scan(&name))
		}
		if err := errors.Join(err, found.Err(), found.Close()); err != nil {
			return err
		}
		return errors.Join( // what administrators signed is of the true one
			execs(ctx, tx, "UPDATE policy SET change = NULL"),
			execs(ctx, tx, "UPDATE setting SET value = ? WHERE name = ?", own[name], name))
	})
}
