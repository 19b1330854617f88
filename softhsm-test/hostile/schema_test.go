package hostile

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// whenAltered are the moments at which a schema is looked at, each with what has to come
// of an alteration: it is refused, and named.
var whenAltered = []struct {
	name string
	look func(*stage, context.Context, string, rows.Alteration) error
}{
	{"at the start", (*stage).atStart},
	{"by doctor", (*stage).byDoctor},
	{"by restore", (*stage).byRestore},
	{"by a write", (*stage).byWrite},
}

// schema alters the schema, and holds that it is refused by name wherever it is looked at;
// then under some operations, that it grants nothing.
func (s *stage) schema(ctx context.Context) {
	all := harness.Must(rows.Schemas(ctx, s.Template))
	if testing.Short() {
		s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:quickSchema]
	}
	var cases []attempt
	for i, a := range all {
		for _, when := range whenAltered {
			if err := s.altered(ctx, a, when.look); err != nil {
				s.Check(false, "GRANTED: %s is not refused by name %s: %v", a, when.name, err)
				continue
			}
			s.Check(true, "")
		}
		for _, name := range []string{"start", "level 1 by alice", "second by bob", "again: refused"} {
			cases = append(cases, attempt{a, named(name), i%2 == 1})
		}
	}
	s.unnoticed(ctx)
	s.all(ctx, s.sample(cases, quickSchema), s.count)
}

// altered gives a look a copy of the world.
func (s *stage) altered(ctx context.Context, a rows.Alteration, look func(*stage, context.Context, string, rows.Alteration) error) error {
	path := filepath.Join(s.dir, "schema.db")
	defer remove(path)
	if err := world.CopyHouse(path, s.Template); err != nil {
		return err
	}
	return guarded(func() error { return look(s, ctx, path, a) })
}

// naming returns an error unless err names the altered object.
func naming(a rows.Alteration, err error) error {
	if err == nil || !strings.Contains(err.Error(), a.Names) {
		return fmt.Errorf("%q is not named: %v", a.Names, err)
	}
	return nil
}

func (s *stage) atStart(ctx context.Context, path string, a rows.Alteration) error {
	if err := a.Apply(ctx, path); err != nil {
		return err
	}
	h, err := world.Open(ctx, s.Place(path))
	if err == nil {
		err = h.Close()
	}
	return naming(a, err)
}

// byDoctor has the store verified, as doctor does of a daemon that runs.
func (s *stage) byDoctor(ctx context.Context, path string, a rows.Alteration) (err error) {
	h, err := world.Open(ctx, s.Place(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := a.Apply(ctx, path); err != nil {
		return err
	}
	_, forged, err := h.Store.Verify(ctx)
	return naming(a, errors.Join(append(forged, err)...))
}

// byRestore restores the database. The restored one has no foreign object.
func (s *stage) byRestore(ctx context.Context, path string, a rows.Alteration) (err error) {
	if err := a.Apply(ctx, path); err != nil {
		return err
	}
	place := s.Place(path)
	here := &scene{House: &world.House{Clock: place.Clock}, World: s.World, place: place}
	here.House.Quiet()
	err = here.restore(ctx)
	if named := naming(a, errors.Join(err, here.salvaged)); named != nil || err != nil {
		return named
	}
	h, err := world.Open(ctx, here.place)
	if err != nil {
		return fmt.Errorf("what was restored does not start: %w", err)
	}
	return h.Close()
}

// byWrite has a running store write. It cannot name the alteration, but it must report one.
func (s *stage) byWrite(ctx context.Context, path string, a rows.Alteration) (err error) {
	h, err := world.Open(ctx, s.Place(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := a.Apply(ctx, path); err != nil {
		return err
	}
	return unwritable(ctx, h)
}

func unwritable(ctx context.Context, h *world.House) error {
	_, suspended := h.Parties.SetClientStatus(ctx, "rob", store.Suspended)
	appended := h.Store.Append(ctx, audit.NewRecord(audit.KindStore, "hostile", nil))
	for _, err := range []error{suspended, appended} {
		if err == nil {
			return errors.New("something was written")
		}
	}
	if !world.Told(appended) || h.Alarms() == 0 {
		return fmt.Errorf("no alarm: %w", appended)
	}
	return nil
}

// unnoticed creates triggers while the appliance runs, and resets the schema version. Even if the
// appliance does not notice them, they must have no effect, and the next start must name them.
func (s *stage) unnoticed(ctx context.Context) {
	for _, meanwhile := range []bool{false, true} {
		path := filepath.Join(s.dir, "unnoticed.db")
		harness.Do(world.CopyHouse(path, s.Template))
		err := s.unnoticedAt(ctx, path, meanwhile)
		remove(path)
		s.Check(err == nil, "GRANTED: a trigger and the version of the schema as before, something written meanwhile %v: %v", meanwhile, err)
	}
}

func (s *stage) unnoticedAt(ctx context.Context, path string, meanwhile bool) error {
	h, err := world.Open(ctx, s.Place(path))
	if err != nil {
		return err
	}
	here := &scene{House: h, World: s.World, place: s.Place(path)}
	err = rows.Unnoticed(ctx, path, func() error {
		forget := rows.SQL("", "CREATE TRIGGER hostile AFTER INSERT ON attempt BEGIN UPDATE restraint SET wrong = 0, recent = '[]', until_us = NULL; END")
		err := forget.Apply(ctx, path)
		if meanwhile {
			_ = h.Store.Append(ctx, audit.NewRecord(audit.KindStore, "hostile", nil)) // refused
			_, _ = h.Parties.Clients(ctx)
		}
		return err
	})
	if err == nil {
		op := named("password, locked after guesses")
		denied := guarded(func() error { return op.do(here, ctx) })
		if v := judge(attempt{Alteration: nothing, operation: op}, h, here.grants, denied); v.outcome == granted {
			err = fmt.Errorf("%v", v.extra)
		}
	}
	if err := errors.Join(err, h.Close()); err != nil {
		return err
	}
	h, err = world.Open(ctx, s.Place(path))
	if err == nil {
		return errors.Join(errors.New("it starts with a foreign trigger"), h.Close())
	}
	return naming(rows.Alteration{Names: "trigger hostile"}, err)
}
