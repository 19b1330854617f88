package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"countersign/appliance/store"
)

// hanging are the records of one kind that fit their seals, by their places.
type hanging map[string]sealedRow

// readHanging reads all of a kind. Each reads its table once from beginning to end, by no
// index: what is verified, what is compared with the head and what is used are then the
// same rows, whatever a writer of the file made of its indexes.
var readHanging = [...]func(source, *vault) ([]sealedRow, error){
	store.HangingKeys:        readKeys,
	store.HangingSettings:    readSettings,
	store.HangingPolicies:    readPolicies,
	store.HangingAdmins:      readAdmins,
	store.HangingChanges:     readChangeRows,
	store.HangingInvitations: readOpenSet,
}

// hanging reads what fits. The alarm has heard of the rest. Change requests that have ended
// hang on nothing, and are returned apart, not verified yet.
func (v *vault) hanging(from source, kind store.Hanging) (all hanging, ended []sealedRow, err error) {
	rows, err := readHanging[kind](from, v)
	if err != nil {
		return nil, nil, err
	}
	all = hanging{}
	for _, r := range rows {
		if r.err != nil {
			continue
		}
		if c, ok := r.record.(store.Change); ok && c.State.Ended() {
			ended = append(ended, r)
			continue
		}
		if v.check(r.record, r.seal) != nil {
			continue
		}
		place := store.Place(r.record)
		if _, twice := all[place]; twice {
			return nil, nil, v.seals.Report(fmt.Sprintf("one of the %s is there twice", kind))
		}
		all[place] = r
	}
	return all, ended, nil
}

func (all hanging) digest() [32]byte {
	seals := map[string]store.Seal{}
	for place, r := range all {
		seals[place] = store.ParseSeal(r.seal)
	}
	return store.DigestOf(seals)
}

// recordsOf are the records themselves, in no order.
func recordsOf[R store.Sealed](all hanging) (records []R) {
	for _, r := range all {
		records = append(records, r.record.(R))
	}
	return records
}

// find is the record at the place of another, or [sql.ErrNoRows].
func find[R store.Sealed](all hanging, place R) (R, error) {
	r, ok := all[store.Place(place)]
	if !ok {
		return place, sql.ErrNoRows
	}
	return r.record.(R), nil
}

// hangs reads the records of a kind, which are those that the head has.
func (v *vault) hangs(from source, h store.Head, kind store.Hanging) (all hanging, ended []sealedRow, err error) {
	all, ended, err = v.hanging(from, kind)
	if found := all.digest(); err == nil && found != h.Digests[kind] {
		err = v.seals.Report(fmt.Sprintf("%s do not match the head: a record is missing, old or foreign", kind))
	}
	return all, ended, err
}

// onHead reads the records of a kind on one snapshot, and the head. A store that was not
// founded has none.
func (s *database) onHead(ctx context.Context, doing string, kind store.Hanging, do func(h store.Head, v *vault, all hanging, ended []sealedRow) error) error {
	return s.read(ctx, doing, func(from snapshot, v *vault) error {
		h, err := v.head(from, from.floor)
		if err != nil {
			return err
		}
		all, ended, err := v.hangs(from, h, kind)
		if err == nil {
			err = do(h, v, all, ended)
		}
		return err
	})
}

// listHanging lists the records of a kind, none of a store that was not founded.
func listHanging[R store.Sealed](ctx context.Context, s *database, doing string, kind store.Hanging) (list []R, err error) {
	err = s.onHead(ctx, doing, kind, func(_ store.Head, _ *vault, all hanging, _ []sealedRow) error {
		list = recordsOf[R](all)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return list, err
}

// head is that of the transaction.
func (t *txn) head() (store.Head, error) {
	v, err := t.unsealed()
	if err != nil {
		return store.Head{}, err
	}
	m := v.mark()
	if t.moved.Revision > m.Revision {
		m = t.moved
	}
	return v.head(t, m)
}

// move changes records that hang on the head, and the head with them. They are verified
// before, and t.hung has them while do runs.
func (t *txn) move(kinds []store.Hanging, do func(*store.Head) error) error {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	if err := v.catchUp(); err != nil {
		return err
	}
	h, err := t.head()
	if err != nil {
		return err
	}
	t.hung = map[store.Hanging]hanging{}
	defer func() { t.hung = nil }()
	for _, kind := range kinds {
		if t.hung[kind], _, err = v.hangs(t, h, kind); err != nil {
			return err
		}
	}
	if err := do(&h); err != nil {
		return err
	}
	return t.putHead(h, kinds...)
}

// hangs notes a record that was sealed, so that putHead knows what has to be there.
func (t *txn) hangs(r store.Sealed, seal []byte) {
	kind, ok := store.HangingOf(r)
	all := t.hung[kind]
	if !ok || all == nil {
		return
	}
	if c, ok := r.(store.Change); ok && c.State.Ended() {
		delete(all, store.Place(r))
		return
	}
	all[store.Place(r)] = sealedRow{record: r, seal: seal}
}

// putHead writes the next revision of the head, with new digests of some kinds: of what is
// there, which has to be what was written.
func (t *txn) putHead(h store.Head, kinds ...store.Hanging) (err error) {
	v, err := t.unsealed()
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		all, _, err := v.hanging(t, kind)
		if err != nil {
			return err
		}
		h.Digests[kind] = all.digest()
		if want := t.hung[kind]; want != nil && want.digest() != h.Digests[kind] {
			return v.seals.Report(fmt.Sprintf("%s are not what was written", kind))
		}
	}
	h.Revision++
	seal, err := v.seals.MakeUnder(h, h.MAC)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO head (name, body, seal) VALUES ('head', ?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?1, seal = ?2`,
		h.Marshal(), seal.Bytes())
	if err == nil {
		t.moved = store.MarkOf(h)
	}
	return err
}

// openSet is the set of open invitations, while the head moves.
func (t *txn) openSet() store.OpenSet {
	open, err := find(t.hung[store.HangingInvitations], store.OpenSet{})
	if err != nil {
		return store.OpenSet{} // of a store in which nobody was invited
	}
	return open
}

func (v *vault) parseOpenSet(body []byte) (store.OpenSet, error) {
	o, err := store.ParseOpenSet(body)
	if err != nil {
		err = v.seals.Report("the set of open invitations cannot be read")
	}
	return o, err
}

func (t *txn) putOpenSet(o store.OpenSet) error {
	seal, err := t.seal(o)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO head (name, body, seal) VALUES ('invitations', ?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?1, seal = ?2`,
		o.Marshal(), seal)
	return err
}
