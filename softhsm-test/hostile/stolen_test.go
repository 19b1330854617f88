package hostile

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// stolen are attacks of one who has read the keys of the seals out of the daemon's memory:
// all that he writes fits its seal and hangs on the head. What rests on other keys holds.
var stolen = []struct {
	name       string
	table      string
	forge      func(context.Context, *thief) error
	operations []string
}{
	{"a refusal is made an approval", "decision", method((*thief).approvesRefusal), []string{"again: refused", "again: refused, when alice is revoked"}},
	{"another UV key, and no certificate", "client", swapsUV(nil), []string{"again: by the thief of a phone", "UV key as alice, bob's, strict"}},
	{"another UV key, and bob's certificate", "client", swapsUV(func(c store.Client) []byte { return c.Cert }), []string{"UV key as alice, bob's, strict"}},
	{"a device that nobody voted for", "invitation", invitesDevice(false), []string{"enrol a device by a made-up code"}},
	{"a device, with the votes for another", "invitation", invitesDevice(true), []string{"enrol a device by a made-up code"}},
	{"an administrator with the votes for another", "admin", method((*thief).appoints), []string{"start"}},
	{"the lenient policy, with the votes for the strict one", "policy", method((*thief).relaxes), []string{"start", "first at level 4"}},
	{"a device nobody voted for is taken", "change", method((*thief).takes), []string{"start, and go on with what was taken"}},
	{"a root of the attacker's own", "setting", method((*thief).founds), []string{"trust document", "invite a phone", "start"}},
}

// thief writes to a store with the true keys of the seals.
type thief struct {
	*world.World
	store.Store
	seals  *store.Seals
	path   string
	place  world.Place
	now    time.Time
	claims store.Claims
}

// seals has one who has read the keys of the seals write.
func (s *stage) stolenSeals(ctx context.Context) {
	var cases []attempt
	for _, f := range stolen {
		a := rows.SQL("").Beside(func(path string) error { return s.steal(ctx, path, f.forge) })
		a.Table, a.Row = f.table, "seal keys read: "+f.name
		for _, name := range f.operations {
			cases = append(cases, attempt{a, named(name), false})
		}
	}
	s.all(ctx, cases, func(v verdict) {
		s.table.add(v)
		s.Say("%-8s %s: %s %v", v.outcome, v.attempt.Row, v.operation.name, v.extra)
		if *printAll {
			s.Say("         %v; %s", v.err, v.heard)
		}
		s.Check(v.outcome != granted, "GRANTED %v by %s: %s", v.extra, v.attempt.Row, v.operation.name)
	})
}

// steal opens the database as one who has the keys of the seals, and no anchor to heed.
func (s *stage) steal(ctx context.Context, path string, forge func(context.Context, *thief) error) (err error) {
	t := &thief{World: s.World, seals: store.NewSeals(nil), path: path, place: s.Place(path), now: s.Now}
	if t.Store, err = sqlite.Open(ctx, sqlite.Config{Path: path}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if t.claims, err = t.Claims(ctx); err != nil {
		return err
	}
	if err := keyuse.SealKeys(ctx, t.place.Token, t.claims.Keys, t.seals); err != nil {
		return err
	}
	if err := t.Unseal(ctx, t.seals, nil); err != nil {
		return err
	}
	return forge(ctx, t)
}

func note() audit.Record { return audit.NewRecord(audit.KindStore, "hostile", nil) }

// write writes rows behind the store.
func (t *thief) write(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	return rows.Func("", do).Apply(ctx, t.path)
}

// approvesRefusal seals another decision on what alice refused.
func (t *thief) approvesRefusal(ctx context.Context) error { return t.approves(ctx, "refused") }

func (t *thief) approves(ctx context.Context, dialog string) error {
	d := t.Dialogs[dialog]
	key := store.AnswerKey{Client: t.Phones["alice"].ID, Serial: d.Serial, M3: sha256.Sum256(d.M3)}
	return t.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if err := forge(ctx, tx, d, protocol.ResultApproved); err != nil {
			return err
		}
		var payload []byte
		var decided int64
		const which = " WHERE counter = ? AND random = ?"
		counter, random := int64(d.Serial.Counter()), d.Serial[4:]
		if err := tx.QueryRowContext(ctx, "SELECT payload, decided_us FROM decision"+which, counter, random).Scan(&payload, &decided); err != nil {
			return err
		}
		k := store.Kept{Spent: store.Spent{AnswerKey: key, Outcome: store.Outcome{Result: protocol.ResultApproved, At: time.UnixMicro(decided)}}}
		var err error
		if k.Outcome.Decision, err = receipt.Parse(payload); err != nil {
			return err
		}
		seal, err := t.seals.Make(k)
		if err != nil {
			return err
		}
		return execs(ctx, tx, "UPDATE decision SET charges = NULL, seal = ?"+which, seal.Bytes(), counter, random)
	})
}

// swapsUV gives alice bob's UV key or the UV key of the thief of her phone, and makes the thief's
// own approval a decision.
func swapsUV(cert func(store.Client) []byte) func(context.Context, *thief) error {
	return func(ctx context.Context, t *thief) error {
		alice, err := t.Client(ctx, t.Phones["alice"].ID)
		if err != nil {
			return err
		}
		bob, err := t.Client(ctx, t.Phones["bob"].ID)
		if err != nil {
			return err
		}
		alice.Version++
		if alice.UVKey, alice.Cert = bob.UVKey, nil; cert != nil {
			alice.Cert = cert(bob)
			return t.UpdateClient(ctx, alice, note())
		}
		_, req, err := t.Phones["thief"].EnrolRequest(ctx, t.Codes["made up"])
		if err != nil {
			return err
		}
		alice.UVKey = req.UVKey
		return errors.Join(t.UpdateClient(ctx, alice, note()), t.approves(ctx, "stolen"))
	}
}

// invitesDevice invites one, and names the request behind another where it is to.
func invitesDevice(votes bool) func(context.Context, *thief) error {
	return func(ctx context.Context, t *thief) error {
		i := store.Invitation{
			Code: sha256.Sum256([]byte(t.Codes["made up"].String())), Kind: store.KindDevice, Name: "eve", Display: "gate", Floor: 1,
			CreatedAt: t.now, ExpiresAt: t.now.Add(time.Hour),
		}
		if votes {
			other, err := t.Invitation(ctx, sha256.Sum256([]byte(t.Codes["till"].String())))
			if err != nil {
				return err
			}
			i.Change = other.Change
		}
		return t.Invite(ctx, i, note())
	}
}

// appoints makes mallory an administrator by the request that made ann one.
func (t *thief) appoints(ctx context.Context) error {
	all, err := t.ListAdmins(ctx)
	if err != nil || len(all) == 0 {
		return fmt.Errorf("no administrator: %w", err)
	}
	key := t.Operators["mallory"].Public
	return t.AddAdmin(ctx, store.Admin{
		ID: change.SignerOf(key), Name: "mallory", Key: key, Status: store.Active, Version: 1, CreatedAt: t.now, Change: all[0].Change,
	}, note())
}

// relaxes applies a policy by the request for the one in force.
func (t *thief) relaxes(ctx context.Context) error {
	p, err := t.ActivePolicy(ctx)
	if err != nil {
		return err
	}
	return t.AddPolicy(ctx, store.Policy{Version: p.Version + 1, Document: t.Lenient, ActivatedAt: t.now, Change: p.Change}, note())
}

// takes has a request that waits for a vote be one that has it.
func (t *thief) takes(ctx context.Context) error {
	return t.EndChange(ctx, store.ChangeEnd{
		ID: t.Changes["open"].Hash.ID(), From: store.ChangeOpen, To: store.ChangeTaken, Required: 1, Signed: []string{"local"}, At: t.now,
	}, note())
}

// founds makes another store in place of this one, with a root of the attacker's own that
// has certified the keys on the token, and a revision that no anchor is ahead of.
func (t *thief) founds(ctx context.Context) error {
	root, err := newRoot(ctx)
	if err != nil {
		return err
	}
	genuine, err := keyring.ParseSettings(t.claims.Settings)
	if err != nil {
		return err
	}
	own := keyring.Settings{Domain: world.Domain, RootCerts: [][]byte{root.cert}, NextRootHash: root.next, HandleEpoch: genuine.HandleEpoch}
	trust := store.Trust{Settings: own.Values(), Policy: t.claims.Policy}
	for _, k := range t.claims.Keys {
		switch {
		case k.Name == keyring.Root && k.Version > 1:
			continue
		case k.Name == keyring.Root:
			if k, err = root.row(k); err != nil {
				return err
			}
		case k.Cert != nil:
			if k.Cert, err = root.certify(ctx, k.Cert, t.Root); err != nil {
				return err
			}
			k.Root = 1
		}
		trust.Keys = append(trust.Keys, k)
	}
	trust.Policy.Version, trust.Policy.Change = 1, [8]byte{}
	fresh := t.path + ".salvaged"
	s, err := sqlite.Open(ctx, sqlite.Config{Path: fresh})
	if err != nil {
		return err
	}
	err = s.Unseal(ctx, t.seals, nil)
	if err == nil {
		err = s.AddTrust(ctx, trust, note())
	}
	if err == nil {
		err = s.Recover(ctx, store.Recovered{At: t.now, Revision: 1 << 20}, note())
	}
	if err := errors.Join(err, s.Close(), t.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, t.path)
}

func method(forge func(*thief, context.Context) error) func(context.Context, *thief) error {
	return func(ctx context.Context, t *thief) error { return forge(t, ctx) }
}
