package keyring

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

const day = 24 * time.Hour

// certified is one use of the root's KeyCerts: which key it is and how long an epoch of it lasts (SP 800-57 part 1 §5.3.6:
// originator usage periods).
type certified struct {
	name   string
	use    trust.Use
	period time.Duration
	linger time.Duration // for which the certificate outlives the period
}

// usages of all keys on the token.
var usages = map[string]hsm.Usage{
	Root: hsm.SignP256, KEM: hsm.DeriveP256, Decision: hsm.SignP256, CA: hsm.SignP256, ClientCA: hsm.SignP256,
	Enrol: hsm.DeriveP256, Wrap: hsm.WrapKey, MAC: hsm.MACKey, Audit: hsm.SignP256,
}

// The kem certificate ends with its epoch, so that phones move on; the others
// linger, so that what they signed last still verifies.
var certifiedKeys = []certified{
	{KEM, trust.UseKEM, 90 * day, 0},
	{Decision, trust.UseDecision, 365 * day, 30 * day},
	{CA, trust.UseCA, 365 * day, 90 * day},
	{Enrol, trust.UseEnrol, 365 * day, 30 * day},
	{ClientCA, trust.UseClientCA, 365 * day, clientCertLife},
}

// epochsAhead is how many epochs one ceremony certifies, so that the root token
// can lie in a safe until then.
const epochsAhead = 4

// startEarly is how long before the ceremony the first epoch begins, for phones
// and devices whose clock is slow.
const startEarly = day

// Ceremony makes every key on the token, certifies them with the root and returns
// what the store has to keep. The token must not hold keys of these names: an
// error wrapping [hsm.ErrExists] says which is there.
func Ceremony(ctx context.Context, token hsm.Token, domain string, now time.Time) (store.Trust, error) {
	if err := CheckDomain(domain); err != nil {
		return store.Trust{}, err
	}
	c := &ceremony{token: token, now: now.UTC().Truncate(time.Second)}
	root, err := c.makeRoot(ctx)
	if err != nil {
		return store.Trust{}, err
	}
	for _, k := range certifiedKeys {
		for epoch := uint64(1); epoch <= epochsAhead; epoch++ {
			if err := c.certify(ctx, root, k, epoch); err != nil {
				return store.Trust{}, err
			}
		}
	}
	for _, name := range []string{Wrap, MAC} {
		row, err := c.generate(ctx, name, 1)
		if err != nil {
			return store.Trust{}, err
		}
		row.ActivatedAt = c.now
	}
	settings := Settings{Domain: domain, RootCerts: [][]byte{root.cert}, NextRootHash: root.next, HandleEpoch: NewHandleEpoch()}
	if err := c.storeAuthorities(ctx, settings); err != nil {
		return store.Trust{}, err
	}
	return store.Trust{Keys: c.rows, Settings: settings.Values()}, nil
}

type ceremony struct {
	token hsm.Token
	now   time.Time
	rows  []store.Key
}

// generate makes a key and remembers its row.
func (c *ceremony) generate(ctx context.Context, name string, version uint64) (*store.Key, error) {
	row, err := born(ctx, c.token, store.Key{Name: name, Version: version, CreatedAt: c.now})
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", Label(name, version), err)
	}
	c.rows = append(c.rows, row)
	return &c.rows[len(c.rows)-1], nil
}

// rowOf puts what the token made into a row.
func rowOf(made hsm.Key, row store.Key) (store.Key, error) {
	row.ID, row.Origin, row.Revision = made.ID, store.Generated, 1
	if made.Copied {
		row.Origin = store.Copied
	}
	if made.Public == nil {
		return row, nil
	}
	point, err := pointOf(made)
	if err != nil {
		return row, fmt.Errorf("public key of %s: %w", Label(row.Name, row.Version), err)
	}
	row.Public = point[:]
	return row, nil
}

type rootKey struct {
	signer Signer
	cert   []byte
	next   [32]byte
}

// makeRoot makes root 1 and, for pre-rotation, root 2 (PROTOCOL.md §2.2): the
// phones pin the hash of the second before it has signed anything.
func (c *ceremony) makeRoot(ctx context.Context) (rootKey, error) {
	first, err := c.generate(ctx, Root, 1)
	if err != nil {
		return rootKey{}, err
	}
	first.ActivatedAt = c.now
	key := Key{Key: *first, Point: protocol.PublicKey(first.Public)}
	second, err := c.generate(ctx, Root, 2)
	if err != nil {
		return rootKey{}, err
	}
	next := sha256.Sum256(second.Public)
	signer := Signer{token: c.token, key: key}
	cert, err := trust.SignRootCert(ctx, signer, trust.RootCert{Number: 1, Key: key.Point, NextHash: next})
	return rootKey{signer: signer, cert: cert, next: next}, err
}

// certify makes one epoch of a certified key and its KeyCert.
func (c *ceremony) certify(ctx context.Context, root rootKey, k certified, epoch uint64) error {
	row, err := c.generate(ctx, k.name, epoch)
	if err != nil {
		return err
	}
	row.NotBefore = c.now.Add(-startEarly + time.Duration(epoch-1)*k.period)
	row.NotAfter = row.NotBefore.Add(k.period + k.linger)
	row.Root, row.ActivatedAt = 1, row.NotBefore
	row.Cert, err = trust.SignKeyCert(ctx, root.signer, k.certificate(*row))
	return err
}

// storeAuthorities does so for the keys of the ceremony.
func (c *ceremony) storeAuthorities(ctx context.Context, settings Settings) error {
	r := &Keyring{token: c.token}
	v := &ring{settings: settings, keys: map[string][]Key{}}
	for _, row := range c.rows {
		if row.Name == CA {
			v.keys[CA] = append(v.keys[CA], Key{Key: row, Point: protocol.PublicKey(row.Public)})
		}
	}
	r.live.Store(v)
	return r.StoreAuthorities(ctx)
}

// certificate is what a KeyCert of a row says, with the dates that the row has.
func (k certified) certificate(row store.Key) trust.KeyCert {
	return trust.KeyCert{
		Epoch: row.Version, Use: k.use, Key: protocol.PublicKey(row.Public),
		NotBefore: uint64(row.NotBefore.Unix()), NotAfter: uint64(row.NotAfter.Unix()),
	}
}

// CheckDomain checks a SPIFFE trust domain: lower-case letters, digits, dots,
// dashes and underscores, at most 255 bytes (SPIFFE-ID §2.1).
func CheckDomain(domain string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
	if domain == "" || len(domain) > 255 || strings.Trim(domain, allowed) != "" {
		return fmt.Errorf("trust domain %q: want lower-case letters, digits, '.', '-' or '_'", domain)
	}
	return nil
}

// SPIFFEID is spiffe://<trust domain>/<kind>/<name>.
func (r *Keyring) SPIFFEID(kind, name string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: r.Domain(), Path: "/" + kind + "/" + name}
}
