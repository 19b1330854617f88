package main

import (
	"context"
	"crypto/ecdh"
	"errors"

	"countersign/appliance/backup"
	"countersign/appliance/custody"
	"countersign/appliance/store"
	"countersign/appliance/store/sqlite"
	"countersign/softhsm-test/hostile/world"
)

// recovery brings the altered database back with the genuine backup of the keys, as
// `countersignd restore --unsigned-database` does, and goes on with it.
var recovery = []operation{
	{"restore, then a refusal again", restored(again("refused")), nil},
	{"restore, then level 1 by rob", restored(byPhone("rob", door)), []grant{{"rob " + approved1, 1}, {`rob is shown "gate"`, 1}}},
	{"restore, then level 1 by ruth", restored(byPhone("ruth", door)), []grant{{`ruth is shown "gate"`, 1}}},
	{"restore, then UV key as alice, bob's", restored(inName("alice", "bob", strict)), []grant{{`alice by bob is shown "gate"`, 3}}},
	{"restore, then second by bob", restored(second("bob", "pending")), []grant{{`bob is shown "gate"`, 4}}},
	{
		"restore, then first and second by bob", restored(afresh("bob")),
		[]grant{{"carol pending: 1000000 EUR of 200 at gate by decision@2", 4}, {`carol is shown "gate"`, 4}, {`bob is shown "gate"`, 4}},
	},
	{"restore, then trust document", restored(func(s *scene, _ context.Context) error { return s.believed() }), trusted},
	{"restore, then start", restored(standing), inForce},
	{"restore, then enrol by a made-up code", restored(enrol("made up")), nil},
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

// restore is what cmd/countersignd/restore*.go does between reading and renaming.
func (s *scene) restore(ctx context.Context) error {
	read, err := backup.Read(s.Backup)
	if err != nil {
		return err
	}
	document, err := read.State()
	if err != nil {
		return err
	}
	if _, err := sqlite.Check(ctx, s.place.Path); err != nil {
		return err
	}
	db, err := sqlite.Open(ctx, sqlite.Config{Path: s.place.Path})
	if err != nil {
		return err
	}
	return errors.Join(s.recover(ctx, db, document), db.Close())
}

func (s *scene) recover(ctx context.Context, db *sqlite.Store, document backup.State) error {
	database, err := backup.StateOf(ctx, db)
	if err != nil {
		return err
	}
	merged, err := backup.Merge(database, document)
	if err != nil {
		return err
	}
	private, err := custody.Combine(s.Shares[:2])
	if err != nil {
		return err
	}
	token := world.EmptyToken()
	r := backup.Restorer{Token: token, Items: merged.Items, Keys: []*ecdh.PrivateKey{private}, Marker: backup.NewMarker()}
	if err := errors.Join(r.Check(), r.Run(ctx), r.Done(ctx)); err != nil {
		return err
	}
	s.place.Token = token
	return db.Recover(ctx, merged.Recovered("first", s.House.Clock.Now()), store.NewRecord(store.KindStore, "restore", nil))
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
