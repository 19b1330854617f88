package backup

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/protocol"
)

// Item is a key that can be restored.
type Item struct {
	hsm.Restore                    // With is not set
	For         protocol.PublicKey // the backup key that opens the copy
}

// Coverage lists which of the keys that are not destroyed can be restored. A key pair in
// several rows counts once.
type Coverage struct {
	Items   []Item
	Missing []store.Key // rows without a sealed copy
}

// Cover finds the sealed copy of each key. Errors wrap [ErrFile].
func Cover(keys []store.Key) (c Coverage, err error) {
	copies := map[[20]byte]store.Key{} // the row that has the copy
	for _, k := range keys {
		if k.Sealed != nil && k.DestroyedAt.IsZero() {
			copies[k.ID] = k
		}
	}
	done := map[[20]byte]bool{}
	for _, k := range keys {
		from, ok := copies[k.ID]
		switch {
		case !k.DestroyedAt.IsZero():
		case !ok:
			c.Missing = append(c.Missing, k)
		case !done[k.ID]:
			done[k.ID] = true
			item, err := itemOf(from)
			if err != nil {
				return c, err
			}
			c.Items = append(c.Items, item)
		}
	}
	return c, nil
}

// itemOf returns how to restore a row's key. The copy opens under the label of the row,
// which the key was generated with.
func itemOf(k store.Key) (i Item, err error) {
	if len(k.SealedFor) != len(i.For) {
		return i, fmt.Errorf("%s: recipient of its copy: %w", keyring.Label(k.Name, k.Version), ErrFile)
	}
	i = Item{For: protocol.PublicKey(k.SealedFor), Restore: hsm.Restore{
		Spec: hsm.KeySpec{Label: keyring.Label(k.Name, k.Version), Usage: keyring.UsageOf(k.Name)}, Sealed: k.Sealed, ID: k.ID,
	}}
	if k.Public != nil {
		i.Public, err = keyring.Key{Key: k}.SPKI()
	}
	if err != nil {
		return i, fmt.Errorf("%s: %v: %w", i.Spec.Label, err, ErrFile)
	}
	return i, nil
}

// Recipients returns the backup keys of a coverage, each once.
func (c Coverage) Recipients() (all []protocol.PublicKey) {
	for _, i := range c.Items {
		if !slices.Contains(all, i.For) {
			all = append(all, i.For)
		}
	}
	return all
}

// MissingLabels returns the labels of the rows without a sealed copy.
func (c Coverage) MissingLabels() []string { return Labels(c.Missing) }

// Labels returns the labels of rows.
func Labels(keys []store.Key) (labels []string) {
	for _, k := range keys {
		labels = append(labels, keyring.Label(k.Name, k.Version))
	}
	return labels
}

// Merged combines a database and a backup.
type Merged struct {
	State
	Coverage
	Ignored []string             // rows of the database that were ignored, as name@version
	stored  map[string]store.Key // rows of the database by label
}

// Merge takes the newer of each key, of the trust settings and of the policy. Errors wrap
// [ErrOther] or [ErrFile].
func Merge(database, document State) (m Merged, err error) {
	m.stored = map[string]store.Key{}
	rows := map[string]store.Key{}
	for _, k := range database.Keys {
		label := keyring.Label(k.Name, k.Version)
		rows[label], m.stored[label] = k, k
	}
	for _, k := range document.Keys {
		label := keyring.Label(k.Name, k.Version)
		old, ok := rows[label]
		if ok && !sameKey(old, k) {
			return m, fmt.Errorf("%s is one key in the database and another in the backup: %w", label, ErrOther)
		}
		if !ok || k.Revision > old.Revision {
			rows[label] = k
		}
	}
	for _, k := range rows {
		m.Keys = append(m.Keys, k)
	}
	slices.SortFunc(m.Keys, func(a, b store.Key) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	if m.Settings, err = newer(database.Settings, document.Settings); err != nil {
		return m, err
	}
	if m.Policy = database.Policy; document.Policy.Version > m.Policy.Version {
		m.Policy = document.Policy
	}
	m.Coverage, err = Cover(m.Keys)
	return m, err
}

// newer returns the later of two settings of one appliance: those with more roots. An
// error wraps [ErrOther].
func newer(a, b keyring.Settings) (keyring.Settings, error) {
	if a.Domain != b.Domain {
		return a, fmt.Errorf("trust domains %q and %q: %w", a.Domain, b.Domain, ErrOther)
	}
	for i := range min(len(a.RootCerts), len(b.RootCerts)) {
		if !bytes.Equal(a.RootCerts[i], b.RootCerts[i]) {
			return a, fmt.Errorf("certificates of root %d differ: %w", i+1, ErrOther)
		}
	}
	if len(a.RootCerts) == len(b.RootCerts) && a.NextRootHash != b.NextRootHash {
		return a, fmt.Errorf("hashes of the next root differ: %w", ErrOther)
	}
	if len(b.RootCerts) > len(a.RootCerts) {
		return b, nil
	}
	return a, nil
}

// overrule takes keys, trust and policy from the document, because nothing vouches for the
// database. A key that the database has as destroyed or compromised stays so. A version
// that the document lacks is recorded as destroyed, so that its number is not used again.
// Errors wrap [ErrOther] or [ErrFile].
func overrule(database, document State, now time.Time) (m Merged, err error) {
	m = Merged{State: document, stored: map[string]store.Key{}}
	m.Keys = slices.Clone(document.Keys)
	known := map[string]*store.Key{}
	for i := range m.Keys {
		known[keyring.Label(m.Keys[i].Name, m.Keys[i].Version)] = &m.Keys[i]
	}
	var unknown []store.Key
	for _, old := range database.Keys {
		label := keyring.Label(old.Name, old.Version)
		m.stored[label] = old
		k, ok := known[label]
		switch {
		case !ok && old.Name == keyring.Root:
			return m, fmt.Errorf("the database has %s and the backup does not: %w", label, ErrOther)
		case ok && !sameKey(*k, old):
			return m, fmt.Errorf("%s is one key in the database and another in the backup: %w", label, ErrOther)
		case !ok:
			old.DestroyedAt = stamp(micros(now))
			unknown = append(unknown, old)
		default:
			k.DestroyedAt, k.CompromisedAt = earlier(k.DestroyedAt, old.DestroyedAt), earlier(k.CompromisedAt, old.CompromisedAt)
		}
		if !ok || old.Revision > k.Revision {
			m.Ignored = append(m.Ignored, label)
		}
	}
	m.Keys = append(m.Keys, unknown...)
	was, is := database.Policy, document.Policy
	if was.Version > is.Version || was.Version == is.Version && !bytes.Equal(was.Document, is.Document) {
		m.Ignored = append(m.Ignored, keyring.Label("policy", database.Policy.Version))
		m.Policy.Version, m.Policy.ActivatedAt = database.Policy.Version+1, stamp(micros(now))
	}
	m.Coverage, err = Cover(m.Keys)
	return m, err
}

// earlier returns the earlier of two times; zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// sameKey reports whether two rows have the same key and, unless one was erased, the same
// sealed copy.
func sameKey(a, b store.Key) bool {
	return a.ID == b.ID && bytes.Equal(a.Public, b.Public) &&
		(a.Sealed == nil || b.Sealed == nil || bytes.Equal(a.Sealed, b.Sealed) && bytes.Equal(a.SealedFor, b.SealedFor))
}

// Lost returns the keys that no copy restores, except roots, whose token may lie in a
// safe.
func (m Merged) Lost() []store.Key {
	return slices.DeleteFunc(slices.Clone(m.Missing), func(k store.Key) bool { return k.Name == keyring.Root })
}

// MarkFounded records that the store was created with the merged keys and has no other
// rows.
func (m *Merged) MarkFounded() {
	m.stored = map[string]store.Key{}
	for _, k := range m.Keys {
		m.stored[keyring.Label(k.Name, k.Version)] = k
	}
}

// Recovered returns the change to the store: restored keys get this origin and the label
// of their token, lost ones are destroyed. A new handle epoch ends every open challenge,
// because the copy lacks those that were answered later.
func (m Merged) Recovered(token string, now time.Time) store.Recovered {
	now = now.UTC().Truncate(time.Microsecond)
	settings := m.Settings
	settings.HandleEpoch = keyring.NewHandleEpoch()
	r := store.Recovered{Policy: m.Policy, At: now}
	r.Settings, r.MAC = settings.Values(), keyring.NewestMAC(m.Keys)
	restored := map[[20]byte]bool{}
	for _, i := range m.Items {
		restored[i.ID] = true
	}
	for _, k := range m.Keys {
		old, stored := m.stored[keyring.Label(k.Name, k.Version)]
		switch {
		case restored[k.ID] && k.DestroyedAt.IsZero():
			k.Origin, k.Tokens = store.Restored, []string{token}
		case k.DestroyedAt.IsZero() && k.Name != keyring.Root:
			k.DestroyedAt = now
		}
		if !stored {
			r.Add = append(r.Add, k)
		} else if k.Revision = old.Revision + 1; old.DestroyedAt.IsZero() {
			r.Update = append(r.Update, k)
		}
	}
	return r
}

// How far before its newest record Ended searches a copy, and how many records it reads
// at a time.
const (
	endedSpan = 30 * 24 * time.Hour
	endedPage = 500
)

// Records are the audit records of a store.
type Records interface {
	Records(ctx context.Context, after uint64, limit int) ([]audit.Record, error)
}

// Ended returns the audit records of the 30 days before a point that revoked or suspended
// clients, devices or administrators, the oldest first.
func Ended(ctx context.Context, from Records, point store.Point) (ended []audit.Record, err error) {
	since := point.At.Add(-endedSpan)
	for last, young := point.Sequence, true; last > 0 && young; last -= min(last, endedPage) {
		first := last - min(last, endedPage)
		page, err := from.Records(ctx, first, int(last-first))
		if err != nil {
			return nil, err
		}
		young = false
		for _, r := range slices.Backward(page) {
			recent := !r.At.Before(since)
			young = young || recent
			if recent && endsOne(r) {
				ended = append(ended, r)
			}
		}
	}
	slices.Reverse(ended)
	return ended, nil
}

func endsOne(r audit.Record) bool {
	if !slices.Contains([]string{audit.KindClients, audit.KindDevices, audit.KindAdmins}, r.Kind) {
		return false
	}
	event := r.Words()["event"]
	return event == store.Revoked.String() || event == store.Suspended.String()
}
