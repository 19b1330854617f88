package backup

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/keyring"
	"countersign/appliance/recovery/custody"
	"countersign/appliance/store"
	"countersign/hsm"
)

// Item is a key that can be restored.
type Item struct {
	hsm.Restore               // With is not set
	For         custody.Point // the backup key that opens the copy
}

// Coverage tells of all keys that are not destroyed which can be restored. A pair that
// several rows have counts once.
type Coverage struct {
	Items   []Item
	Missing []store.Key // rows of keys without a sealed copy
}

// Cover looks for the sealed copy of each key. Errors wrap [ErrFile].
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

// itemOf is how a row's key comes back. The copy opens under the label that the key
// was made with, which is that of the row.
func itemOf(k store.Key) (i Item, err error) {
	if len(k.SealedFor) != len(i.For) {
		return i, fmt.Errorf("%s: for whom its copy is sealed: %w", keyring.Label(k.Name, k.Version), ErrFile)
	}
	i = Item{For: custody.Point(k.SealedFor), Restore: hsm.Restore{
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

// Recipients are the backup keys of a coverage, each once.
func (c Coverage) Recipients() (all []custody.Point) {
	for _, i := range c.Items {
		if !slices.Contains(all, i.For) {
			all = append(all, i.For)
		}
	}
	return all
}

// MissingLabels are the labels of the rows of keys without a sealed copy.
func (c Coverage) MissingLabels() []string { return Labels(c.Missing) }

// Labels of the rows of keys.
func Labels(keys []store.Key) (labels []string) {
	for _, k := range keys {
		labels = append(labels, keyring.Label(k.Name, k.Version))
	}
	return labels
}

// Merged is what a database and a backup know together.
type Merged struct {
	State
	Coverage
	Ignored []string             // what of the database does not count, as name@version
	stored  map[string]store.Key // rows of the database by label
}

// Merge takes of each key and of the trust whatever is newer. Errors wrap [ErrOther]
// or [ErrFile].
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

// overrule takes keys, trust and policy from the document, whatever a database says that
// nothing vouches for. What the database takes away stays away, as the store would have
// it: a key that is destroyed or compromised. A version that the document does not know
// is recorded as destroyed, so that it is never another key. Errors wrap [ErrOther] or
// [ErrFile].
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
			return m, fmt.Errorf("the database knows %s and the backup does not: %w", label, ErrOther)
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
	newer := database.Policy.Version > document.Policy.Version
	if newer || database.Policy.Version == document.Policy.Version && !bytes.Equal(database.Policy.Document, document.Policy.Document) {
		m.Ignored = append(m.Ignored, keyring.Label("policy", database.Policy.Version))
		m.Policy.Version, m.Policy.ActivatedAt = database.Policy.Version+1, stamp(micros(now))
	}
	m.Coverage, err = Cover(m.Keys)
	return m, err
}

// earlier is the first of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// sameKey: the copies are equal too, except where one was erased.
func sameKey(a, b store.Key) bool {
	return a.ID == b.ID && bytes.Equal(a.Public, b.Public) &&
		(a.Sealed == nil || b.Sealed == nil || bytes.Equal(a.Sealed, b.Sealed) && bytes.Equal(a.SealedFor, b.SealedFor))
}

// Lost are the keys that no copy brings back, apart from roots: the token of a root may
// lie in a safe.
func (m Merged) Lost() []store.Key {
	return slices.DeleteFunc(slices.Clone(m.Missing), func(k store.Key) bool { return k.Name == keyring.Root })
}

// MarkFounded notes that the store was founded with the merged keys, and has no other rows.
func (m *Merged) MarkFounded() {
	m.stored = map[string]store.Key{}
	for _, k := range m.Keys {
		m.stored[keyring.Label(k.Name, k.Version)] = k
	}
}

// Recovered is what the store gets: each key that was restored says so, with the label
// of its token, and one that is lost is destroyed. A new handle epoch ends every
// challenge that is under way, since the copy does not know which were answered.
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
