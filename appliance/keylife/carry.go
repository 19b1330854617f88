package keylife

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Carry does on the token what a plan needs and returns what the store must keep. Nothing
// is used before it is stored and [keyuse.Keys.Reload] has read it. An interruption
// leaves at most a key without a row, which the repeated step adopts. label names the
// token in the rows of new keys.
func Carry(ctx context.Context, keys *keyuse.Keys, p keyplan.Plan, label string) (store.KeyChange, error) {
	c := carrier{Keys: keys, edits: p.Edits, label: label, adopts: true}
	change := store.KeyChange{Settings: p.Settings(keys.Settings())}
	if err := c.carry(ctx); err != nil {
		return change, err
	}
	for _, e := range p.Edits {
		switch {
		case e.Kept:
		case e.IsNew:
			change.Add = append(change.Add, e.Key)
		default:
			change.Update = append(change.Update, e.Key)
		}
	}
	return change, nil
}

// Ceremony generates every key on the token, certifies them with the root and returns
// what the store must keep. The token must not hold keys of these names: an error
// wrapping [hsm.ErrExists] names the one that exists.
func Ceremony(ctx context.Context, token hsm.Token, domain string, now time.Time) (store.Trust, error) {
	if err := checkDomain(domain); err != nil {
		return store.Trust{}, err
	}
	plan := keyplan.Ceremony(now)
	c := carrier{Keys: keyuse.Unverified(token, &keyring.Ring{}), edits: plan.Edits}
	if err := c.carry(ctx); err != nil {
		return store.Trust{}, err
	}
	var pinned store.Trust
	settings := keyring.Settings{Domain: domain, HandleEpoch: keyring.NewHandleEpoch()}
	var authorities []keyring.Key
	for _, e := range plan.Edits {
		key := keyOf(e)
		switch {
		case e.Name == keyring.Root && e.Version == 1:
			settings.RootCerts, key.Cert = [][]byte{e.Cert}, nil
		case e.Name == keyring.Root:
			settings.NextRootHash = sha256.Sum256(e.Public)
		case e.Name == keyring.CA:
			authorities = append(authorities, key)
		}
		pinned.Keys = append(pinned.Keys, key.Key)
	}
	pinned.Settings = settings.Values()
	ring := (&keyring.Ring{}).With(settings, authorities...)
	return pinned, StoreAuthorities(ctx, keyuse.Unverified(token, ring))
}

// checkDomain checks a SPIFFE trust domain: lower-case letters, digits, dots, dashes and
// underscores, at most 255 bytes (SPIFFE-ID §2.1).
func checkDomain(domain string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
	if domain == "" || len(domain) > 255 || strings.Trim(domain, allowed) != "" {
		return fmt.Errorf("trust domain %q: want lower-case letters, digits, '.', '-' or '_'", domain)
	}
	return nil
}

// carrier carries out the edits of one plan, in place.
type carrier struct {
	*keyuse.Keys
	edits  []keyplan.Edit
	label  string // of the token; "": not set
	adopts bool   // adopt keys without a row that have the right label
}

func (c carrier) carry(ctx context.Context) error {
	for _, e := range c.generated() {
		if err := c.generate(ctx, e); err != nil {
			return fmt.Errorf("generating %s: %w", keyring.Label(e.Name, e.Version), err)
		}
		if c.label != "" {
			e.Tokens = []string{c.label}
		}
	}
	for i := range c.edits {
		if e := &c.edits[i]; e.Certify {
			if err := c.certify(ctx, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// generated returns the edits that generate a key: wrap and mac before key pairs. A module that lacks
// something most often lacks a mechanism of secret keys, and a ceremony that fails should leave no key
// on the token.
func (c carrier) generated() (edits []*keyplan.Edit) {
	for i := range c.edits {
		if c.edits[i].Generate {
			edits = append(edits, &c.edits[i])
		}
	}
	slices.SortStableFunc(edits, func(a, b *keyplan.Edit) int {
		return cmp.Compare(keyring.UsageOf(b.Name), keyring.UsageOf(a.Name))
	})
	return edits
}

// generate generates the key of a new version. A key with its label is on the token
// already if this step was interrupted after generating it, or if the store is an old
// copy and the key is in use. It is therefore adopted and never replaced, although its
// sealed copy is lost.
func (c carrier) generate(ctx context.Context, e *keyplan.Edit) error {
	made, sealedFor, err := generate(ctx, c.Token(), hsm.KeySpec{
		Label: keyring.Label(e.Name, e.Version), Usage: keyring.UsageOf(e.Name),
	})
	row := e.Key
	if sealedFor != nil && err == nil {
		row.Sealed, row.SealedFor = made.Sealed[0], sealedFor
	}
	if errors.Is(err, hsm.ErrExists) && c.adopts {
		made, err = c.leftBehind(ctx, keyring.Label(e.Name, e.Version), keyring.UsageOf(e.Name))
	}
	if err != nil {
		return err
	}
	row.ID, row.Origin, row.Revision = made.ID, store.Generated, 1
	if made.Copied {
		row.Origin = store.Copied
	}
	if made.Public != nil {
		point, err := keyring.PointOf(made)
		if err != nil {
			return fmt.Errorf("public key: %w", err)
		}
		row.Public = point[:]
	}
	e.Key = row
	return nil
}

// Backed is a token on which each new key gets a sealed copy for a backup key. A copy can
// only be made when its key is generated (SP 800-57 part 1 §8.2.2.1: backup).
type Backed struct {
	hsm.Token
	Recipient *ecdh.PublicKey // on P-256; nil: no copies
}

// generate generates a key, with a sealed copy if the token is [Backed]. sealedFor is the
// compressed backup key, nil without a copy.
func generate(ctx context.Context, token hsm.Token, spec hsm.KeySpec) (made hsm.Key, sealedFor []byte, err error) {
	if backed, ok := token.(Backed); ok && backed.Recipient != nil {
		point, err := protocol.CompressPoint(backed.Recipient.Bytes())
		if err != nil {
			return made, nil, err
		}
		spec.Recipients, sealedFor = []*ecdh.PublicKey{backed.Recipient}, point[:]
	}
	made, err = token.Generate(ctx, spec)
	return made, sealedFor, err
}

// leftBehind finds a key that was generated and never stored.
func (c carrier) leftBehind(ctx context.Context, label string, usage hsm.Usage) (k hsm.Key, err error) {
	all, err := c.Token().Keys(ctx)
	if err != nil {
		return k, err
	}
	objects, err := c.Token().Objects(ctx)
	if err != nil {
		return k, err
	}
	found := slices.DeleteFunc(all, func(k hsm.Key) bool { return k.Label != label })
	if len(found) != 1 || found[0].Usage != usage {
		return k, foreign(label, objects)
	}
	k = found[0]
	if slices.ContainsFunc(c.Ring().Keys(), func(row keyring.Key) bool { return row.ID == k.ID }) {
		return k, fmt.Errorf("key %s is another version: %w", k.ID, hsm.ErrExists)
	}
	k.Copied = slices.ContainsFunc(objects, func(o hsm.Object) bool { // sealed copies were made at generation
		return o.Key == k.ID && o.Told&^o.True&hsm.AttrNeverExtractable != 0
	})
	return k, nil
}

// foreign is the error of a label that an object has which is no key of the appliance.
func foreign(label string, objects []hsm.Object) error {
	var there []string
	for _, o := range objects {
		if o.Label != label {
			continue
		}
		kind := map[string]string{"CKO_PRIVATE_KEY": "privkey", "CKO_SECRET_KEY": "secrkey"}[o.Class]
		one := fmt.Sprintf("%s, CKA_ID %x, pkcs11-tool --delete-object --type %s --label %s", o.Class, o.ID, kind, label)
		if len(o.ID) > 0 {
			one += fmt.Sprintf(" --id %x", o.ID)
		}
		if o.Token != "" {
			one = "token " + o.Token + ": " + one
		}
		there = append(there, one)
	}
	return fmt.Errorf("the token has a foreign key with the label %q (%s): give it another label with the vendor's tool, "+
		"or remove it if nothing uses it, and repeat: %w", label, strings.Join(there, "; "), hsm.ErrExists)
}

// certify signs the certificate of a row: for a root its own RootCert, which names the
// root after it, for another key a KeyCert by its root.
func (c carrier) certify(ctx context.Context, e *keyplan.Edit) (err error) {
	if e.Name != keyring.Root {
		root, _ := c.find(keyring.Root, e.Root)
		cert := keyOf(*e).KeyCert()
		if e.RulesOut {
			cert.MinEpoch = &cert.Epoch
		}
		cert.Suite = c.suiteOf(*e)
		e.Cert, err = trust.SignKeyCert(ctx, c.Signer(root), cert)
		return err
	}
	after, ok := c.find(keyring.Root, e.Version+1)
	if !ok {
		return fmt.Errorf("%s: the root after it: %w", keyring.Label(keyring.Root, e.Version), keyring.ErrNoKey)
	}
	root := keyOf(*e)
	cert := trust.RootCert{Number: e.Version, Key: root.Point, NextHash: sha256.Sum256(after.Public)}
	if e.RulesOut {
		cert.Reason = trust.ReasonCompromised
	}
	e.Cert, err = trust.SignRootCert(ctx, c.Signer(root), cert)
	return err
}

// suiteOf returns field 7 of a KeyCert. A kem key keeps the suite that it has. A new one gets suite 1
// wherever the token can do that.
func (c carrier) suiteOf(e keyplan.Edit) uint8 {
	if e.Name != keyring.KEM {
		return 0
	}
	if k, ok := c.Ring().Find(e.Name, e.Version); ok && k.Cert != nil {
		return k.Suite
	}
	kems := c.Token().KEMs()
	if len(kems) == 0 || kems[0] == hsm.DHKEM {
		return 0
	}
	return uint8(kems[0])
}

// find returns a key version as it is after the edits.
func (c carrier) find(name string, version uint64) (keyring.Key, bool) {
	for _, e := range c.edits {
		if e.Name == name && e.Version == version {
			return keyOf(e), true
		}
	}
	return c.Ring().Find(name, version)
}

func keyOf(e keyplan.Edit) keyring.Key {
	k := keyring.Key{Key: e.Key}
	copy(k.Point[:], e.Public)
	return k
}

// Erase removes from the token what a destroy step gave up. It runs after the row is
// stored, so that nothing uses a key that may be gone. A missing key is no error, so that
// an interrupted step can be repeated. Errors come from the token.
func Erase(ctx context.Context, keys *keyuse.Keys, p keyplan.Plan) error {
	if p.Verb != keyplan.Destroy {
		return nil
	}
	for _, e := range p.Edits {
		shared := slices.ContainsFunc(keys.Ring().Keys(), func(k keyring.Key) bool {
			return k.ID == e.ID && (k.Name != e.Name || k.Version != e.Version) && k.DestroyedAt.IsZero()
		})
		if shared {
			continue
		}
		if err := keys.Token().Destroy(ctx, e.ID); err != nil && !errors.Is(err, hsm.ErrKey) {
			return fmt.Errorf("destroying %s: %w", keyring.Label(e.Name, e.Version), err)
		}
	}
	return nil
}

// StoreAuthorities stores the X.509 certificate of each ca epoch next to its key, for
// PKCS#11 tools. The appliance does not read them, and a module without certificate
// objects works as well.
func StoreAuthorities(ctx context.Context, keys *keyuse.Keys) error {
	for _, key := range keys.Ring().Versions(keyring.CA) {
		if !key.DestroyedAt.IsZero() {
			continue
		}
		cert, err := keys.Authority(ctx, key)
		if err != nil {
			return err
		}
		err = keys.Token().StoreCertificate(ctx, hsm.Certificate{Key: key.ID, Label: key.Label(), DER: cert.Raw})
		if err != nil && !errors.Is(err, hsm.ErrUnsupported) {
			return fmt.Errorf("storing the certificate of %s: %w", key.Label(), err)
		}
	}
	return nil
}
