// Package keyring answers which key of the registry is in use, accepted or given up at
// a given time, and verifies the registry under the roots of the appliance. It is pure:
// rows, certificates, the keys on the token and the time are its input. Package keyplan
// plans the steps of a key's life, keyuse uses the keys on the token, and keylife
// carries the steps out.
package keyring

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"countersign/appliance/store"
	"countersign/hsm"
	"countersign/protocol"
	"countersign/protocol/trust"
)

// Names of the keys, PROTOCOL.md §2.1.
const (
	Root     = "root"
	KEM      = "kem"
	Decision = "decision"
	CA       = "ca"
	ClientCA = "client-ca"
	Enrol    = "enrol"
	Wrap     = "wrap"
	MAC      = "mac"
	// Audit signs the checkpoints of the audit log. The ceremony does not create it.
	Audit = "audit"
)

// Names lists all keys in the order of listings.
var Names = []string{Root, KEM, Decision, CA, ClientCA, Enrol, Wrap, MAC, Audit}

// Needed lists the keys without which the appliance cannot serve.
var Needed = []string{KEM, Decision, CA, ClientCA, Enrol, Wrap, MAC}

// ErrNoKey means that no version of a key is valid at this time.
var ErrNoKey = errors.New("no valid key")

var usages = map[string]hsm.Usage{
	Root: hsm.SignP256, KEM: hsm.DeriveP256, Decision: hsm.SignP256, CA: hsm.SignP256, ClientCA: hsm.SignP256,
	Enrol: hsm.DeriveP256, Wrap: hsm.WrapKey, MAC: hsm.MACKey, Audit: hsm.SignP256,
}

// UsageOf returns the usage on the token of the key with this name; 0 for an unknown
// name.
func UsageOf(name string) hsm.Usage { return usages[name] }

var purposes = map[string]string{
	Root: "certifies the other keys", KEM: "phones encrypt to it", Decision: "signs decisions and receipts",
	CA: "issues X.509 certificates", ClientCA: "issues client certificates", Enrol: "takes password verifiers in",
	Wrap: "keeps password verifiers", MAC: "seals, handles, pairwise ids", Audit: "signs checkpoints of the audit log",
}

// Purpose describes a key in a few words: PROTOCOL.md §2.1.
func Purpose(name string) string { return purposes[name] }

var uses = map[string]trust.Use{
	KEM: trust.UseKEM, Decision: trust.UseDecision, CA: trust.UseCA, Enrol: trust.UseEnrol,
	ClientCA: trust.UseClientCA,
}

// IsCertified reports whether versions of this key have a KeyCert by a root.
func IsCertified(name string) bool { return uses[name] != 0 }

// Key is one key version of the registry.
type Key struct {
	store.Key
	Point protocol.PublicKey // of a key pair, else zero
	// OnToken is false only for roots, whose token may lie in a safe, for destroyed
	// keys, and for missing keys that are retired, suspended or compromised.
	OnToken bool
	// RulesOut means that the KeyCert rules out every earlier epoch (field 6), because
	// those were compromised.
	RulesOut bool
	// Suite is the suite of a kem key other than 1, as its KeyCert names it (field 7).
	Suite uint8
}

// Label returns name@version, the CKA_LABEL of a key version.
func Label(name string, version uint64) string { return fmt.Sprintf("%s@%d", name, version) }

// Label returns the key's name@version.
func (k Key) Label() string { return Label(k.Name, k.Version) }

// SPKI returns the key pair's SubjectPublicKeyInfo in DER, RFC 5280 §4.1.2.7.
func (k Key) SPKI() ([]byte, error) {
	public, err := protocol.PublicKey(k.Public).ECDSA()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(public)
}

// KeyCert returns the contents of the KeyCert for this row, with the row's dates.
func (k Key) KeyCert() trust.KeyCert {
	return trust.KeyCert{
		Epoch: k.Version, Use: uses[k.Name], Key: protocol.PublicKey(k.Public),
		NotBefore: uint64(k.NotBefore.Unix()), NotAfter: uint64(k.NotAfter.Unix()), Suite: k.Suite,
	}
}

// KEM returns how a kem key decapsulates.
func (k Key) KEM() hsm.KEM { return max(hsm.KEM(k.Suite), hsm.DHKEM) }

// Held reports whether the key is neither retired, suspended, compromised nor destroyed.
func (k Key) Held() bool {
	return k.RetiredAt.IsZero() && k.SuspendedAt.IsZero() && k.CompromisedAt.IsZero() && k.DestroyedAt.IsZero()
}

// Begun reports whether the version has come into use by now.
func (k Key) Begun(now time.Time) bool { return !k.ActivatedAt.IsZero() && !now.Before(k.ActivatedAt) }

// Dated reports whether now is within the key's dates. A key without dates has no limit.
func (k Key) Dated(now time.Time) bool {
	return (k.NotBefore.IsZero() || !now.Before(k.NotBefore)) && (k.NotAfter.IsZero() || !now.After(k.NotAfter))
}

// ClientCertLife is how long a client certificate is valid.
const ClientCertLife = 5 * 365 * 24 * time.Hour

// kemGrace is how long a kem epoch is accepted after its end, PROTOCOL.md §2.1.
const kemGrace = 30 * 24 * time.Hour

// Accepted reports whether the appliance still accepts signatures, MACs and ciphertexts
// under this version: from the moment it may be known outside until it is retired or over.
func (k Key) Accepted(now time.Time) bool {
	end := k.NotAfter
	if k.Name == KEM {
		end = end.Add(kemGrace)
	}
	return k.Held() && (k.NotAfter.IsZero() || !now.After(end))
}

// NewestMAC returns the newest version of mac among rows that was activated and is
// held, or 0. New seals are under that version.
func NewestMAC(rows []store.Key) (newest uint64) {
	for _, row := range rows {
		if k := (Key{Key: row}); k.Name == MAC && k.Held() && !k.ActivatedAt.IsZero() {
			newest = max(newest, k.Version)
		}
	}
	return newest
}
