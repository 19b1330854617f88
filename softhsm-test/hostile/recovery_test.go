package hostile

import (
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"countersign/appliance/anchor"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/recovery/backup"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/hsm/memory"
	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// restoring restores the altered database with the genuine backup of the keys, as `countersignd
// restore --unsigned-database` does, and continues on it.
var restoring = []operation{
	{"restore, then a refusal again", restored(again("refused")), nil},
	{"restore, then level 1 by rob", restored(byPhone("rob", door)), []grant{{"rob " + approved1, 1}, {`rob is shown "gate"`, 1}}},
	{"restore, then level 1 by ruth", restored(byPhone("ruth", door)), []grant{{`ruth is shown "gate"`, 1}}},
	{"restore, then UV key as alice, bob's", restored(inName("alice", "bob", strict)), []grant{{`alice by bob is shown "gate"`, 3}}},
	{"restore, then second by bob", restored(second("bob", "pending")), nil}, // no challenge survives it
	{
		"restore, then first and second by bob", restored(afresh("bob")),
		[]grant{{"carol pending: 1000000 EUR of 200 at gate by decision@2", 4}, {`carol is shown "gate"`, 4}, {`bob is shown "gate"`, 4}},
	},
	{"restore, then trust document", restored(func(s *scene, _ context.Context) error { return s.believed() }), trusted},
	{"restore, then start", restored(standingRestored), inForce},
	{"restore, then enrol by a made-up code", restored(enrolClient("made up")), nil},
}

// afresh has carol ask for a second approval, and another give it.
func afresh(who string) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		p := *s.Phones["carol"]
		first, err := s.begin(ctx, "carol", &p, pay(1_000_000))
		if err != nil {
			return err
		}
		if err := s.Approve(ctx, first); err != nil {
			return err
		}
		s.decided("carol", first, first.Answer)
		return byFirst(who, func(*world.World) *world.Dialog { return first })(s, ctx)
	}
}

// restored runs an operation on what comes back.
func restored(then func(*scene, context.Context) error) func(*scene, context.Context) error {
	return func(s *scene, ctx context.Context) error {
		if err := s.House.Close(); err != nil {
			return err
		}
		if err := s.restore(ctx); err != nil {
			return errors.Join(err, s.reopen(ctx)) // the caller closes it
		}
		if err := s.reopen(ctx); err != nil {
			return err
		}
		return then(s, ctx)
	}
}

// restoration is one restore of a database that only its seals vouch for.
type restoration struct {
	*scene
	store    store.Store
	seals    *store.Seals
	token    *memory.Token
	merged   backup.Merged
	salvaged error   // why the database as a whole was not believed, nil if it was
	forged   []error // records that do not fit their seals
}

// restore is what cmd/countersignd/restore*.go does between reading and renaming. The
// anchor of the host that is lost is lost with it.
func (s *scene) restore(ctx context.Context) error {
	read, err := backup.Read(s.Backup, backup.Known{Root: s.Root})
	if err != nil {
		return err
	}
	if _, err := sqlite.Check(ctx, s.place.Path); err != nil {
		return err
	}
	r := &restoration{scene: s, seals: store.NewSeals(s.House.Alarm), token: world.EmptyToken()}
	if r.store, err = sqlite.Open(ctx, sqlite.Config{Path: s.place.Path}); err != nil {
		return err
	}
	err = r.merge(ctx, read)
	if err == nil {
		err = r.onto(ctx)
	}
	s.salvaged = r.salvaged
	return errors.Join(err, r.store.Close())
}

// merge holds database and backup together, and brings the keys onto the token.
func (r *restoration) merge(ctx context.Context, read backup.Backup) error {
	claims, err := r.store.Claims(ctx)
	if err != nil {
		return err
	}
	database, err := backup.Claimed(claims)
	if err != nil {
		return err
	}
	if r.merged, err = read.Alone(database, r.House.Clock.Now()); err != nil {
		return err
	}
	if lost := r.merged.Lost(); len(lost) > 0 {
		return fmt.Errorf("lost: %v", backup.Labels(lost))
	}
	private, err := custody.Combine(r.Shares[:2])
	if err != nil {
		return err
	}
	b := backup.Restorer{Token: r.token, Items: r.merged.Items, Keys: []*ecdh.PrivateKey{private}, Marker: backup.NewMarker()}
	return errors.Join(b.Check(), b.Run(ctx), b.Done(ctx))
}

// onto is what follows once the keys are on the token.
func (r *restoration) onto(ctx context.Context) error {
	if err := r.unseal(ctx); err != nil {
		return err
	}
	now := r.House.Clock.Now()
	if err := r.store.Recover(ctx, r.merged.Recovered("first", now), audit.NewRecord(audit.KindStore, "restore", nil)); err != nil {
		return err
	}
	_, forged, err := r.store.Verify(ctx)
	if err != nil {
		return err
	}
	r.forged = append(r.forged, forged...)
	claims, err := r.store.Claims(ctx)
	if err != nil {
		return err
	}
	if err := os.Remove(world.AnchorOf(r.place.Path)); err != nil {
		return err
	}
	at, err := anchor.Open(world.AnchorOf(r.place.Path))
	if err != nil {
		return err
	}
	if err := (keyuse.Pins{Anchor: at, Root: r.Root}).Verify(claims); err != nil {
		return err
	}
	r.place.Token = r.token
	return r.store.Unseal(ctx, r.seals, at)
}

func (r *restoration) unseal(ctx context.Context) error {
	pins := keyuse.Pins{Anchor: anchor.InMemory(anchor.Anchor{}), Root: r.Root}
	err := keyuse.Unseal(ctx, r.token, r.store, r.seals, pins)
	if err == nil {
		err = keyuse.SealKeys(ctx, r.token, r.merged.Keys, r.seals)
	}
	if err != nil {
		err = r.salvage(ctx, err)
	}
	return err
}

func (r *restoration) salvage(ctx context.Context, cause error) error {
	if err := r.store.Close(); err != nil {
		return err
	}
	r.salvaged, r.seals = cause, store.NewSeals(r.House.Alarm)
	if err := keyuse.SealKeys(ctx, r.token, r.merged.Keys, r.seals); err != nil {
		return err
	}
	fresh := r.place.Path + ".salvaged"
	pinned := store.Trust{Keys: r.merged.Keys, Settings: r.merged.Settings.Values(), Policy: r.merged.Policy}
	var err error
	if r.forged, err = sqlite.Salvage(ctx, r.place.Path, fresh, r.seals, pinned, audit.NewRecord(audit.KindStore, "restore", nil)); err != nil {
		return err
	}
	if err := os.Rename(fresh, r.place.Path); err != nil {
		return err
	}
	r.merged.MarkFounded()
	if r.store, err = sqlite.Open(ctx, sqlite.Config{Path: r.place.Path, Existing: true}); err != nil {
		return err
	}
	return r.store.Unseal(ctx, r.seals, nil)
}

// reopen starts the appliance again on the same files.
func (s *scene) reopen(ctx context.Context) error {
	alarms := s.House.Alarms()
	_ = s.House.Close() // it may be closed already
	h, err := world.Open(ctx, s.place)
	if h == nil {
		return err
	}
	h.Remember(alarms)
	s.House = h
	return err
}

// foreignRoot replaces root 1 by one of the attacker's own, and certifies the keys that
// are on the token by it.
func foreignRoot(w *world.World) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		root, err := newRoot(ctx)
		if err != nil {
			return err
		}
		own := keyring.Settings{Domain: world.Domain, RootCerts: [][]byte{root.cert}, NextRootHash: root.next}
		for name, value := range own.Values() {
			if err := execs(ctx, tx, "UPDATE setting SET value = ? WHERE name = ?", value, name); err != nil {
				return err
			}
		}
		row, err := root.row(store.Key{})
		if err != nil {
			return err
		}
		if err := execs(ctx, tx, "UPDATE key SET public = ?, id = ? WHERE name = 'root' AND version = 1", row.Public, row.ID[:]); err != nil {
			return err
		}
		return root.certifyAll(ctx, tx, w.Root)
	})
}

// foreign is a root of the attacker's own.
type foreign struct {
	key  phone.Key
	cert []byte
	next [32]byte
}

func newRoot(ctx context.Context) (r foreign, err error) {
	r.key = phone.NewKey()
	point := phone.NewKey().Point()
	r.next = sha256.Sum256(point[:])
	r.cert, err = trust.SignRootCert(ctx, r.key, trust.RootCert{Number: 1, Key: r.key.Point(), NextHash: r.next})
	return r, err
}

// row is the registry row of this root.
func (r foreign) row(k store.Key) (store.Key, error) {
	point := r.key.Point()
	key := keyring.Key{Key: k}
	key.Public = point[:]
	public, err := point.ECDSA()
	if err != nil {
		return k, err
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	sum := sha256.Sum256(spki)
	key.ID, key.Cert = [20]byte(sum[:20]), nil
	key.Sealed, key.SealedFor = nil, nil
	return key.Key, err
}

// certify signs what the true root certified.
func (r foreign) certify(ctx context.Context, cert []byte, trueRoot protocol.PublicKey) ([]byte, error) {
	k, err := trust.VerifyKeyCert(cert, trueRoot)
	if err != nil {
		return nil, err
	}
	return trust.SignKeyCert(ctx, r.key, k)
}

func (r foreign) certifyAll(ctx context.Context, tx *sql.Tx, trueRoot protocol.PublicKey) (err error) {
	found, err := tx.QueryContext(ctx, "SELECT cert FROM key WHERE cert IS NOT NULL AND name <> 'root'")
	if err != nil {
		return err
	}
	var certs [][]byte
	for found.Next() {
		var cert []byte
		err = errors.Join(err, found.Scan(&cert))
		certs = append(certs, cert)
	}
	if err := errors.Join(err, found.Err(), found.Close()); err != nil {
		return err
	}
	for _, cert := range certs {
		own, err := r.certify(ctx, cert, trueRoot)
		if err == nil {
			err = execs(ctx, tx, "UPDATE key SET cert = ? WHERE cert = ?", own, cert)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
