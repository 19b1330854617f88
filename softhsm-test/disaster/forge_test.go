package disaster

import (
	"context"
	"crypto/sha256"
	"os"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// forger has the files, keys of his own, and certificates by them.
type forger struct {
	decision  phone.Key
	root      protocol.PublicKey
	rootCert  []byte
	certified []byte // KeyCert of decision
}

func newForger(ctx context.Context) forger {
	root, decision := phone.NewKey(), phone.NewKey()
	f := forger{decision: decision, root: root.Point()}
	f.rootCert = harness.Must(protocol.SignRootCert(ctx, root, protocol.RootCert{Number: 1, Key: f.root}))
	f.certified = harness.Must(protocol.SignKeyCert(ctx, root, protocol.KeyCert{Epoch: 1, Use: protocol.UseDecision, Key: decision.Point(), NotAfter: 1 << 40}))
	return f
}

// signedFile is the form of a key backup and of a database's statement.
type signedFile struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Payload   []byte
	Roots     [][]byte
	Cert      []byte
	Signature []byte
}

// resign signs the content of a genuine file, the genuine roots included, under a new root.
func (f forger) resign(ctx context.Context, from, to string) {
	var file signedFile
	harness.Do(cbor.Unmarshal(harness.Must(os.ReadFile(from)), &file))
	digest := sha256.Sum256(protocol.SigStructure("countersign "+file.Kind+" v1", file.Payload))
	file.Roots, file.Cert = [][]byte{f.rootCert}, f.certified
	file.Signature = harness.Must(f.decision.SignDigest(ctx, digest[:]))
	harness.Do(os.WriteFile(to, harness.Must(cbor.Marshal(file)), 0o600))
}

// resigned replaces the backup, the statement, or both by a forger's.
func (s *stage) resigned(ctx context.Context, f *files, keys, statement bool) {
	by := newForger(ctx)
	if keys {
		by.resign(ctx, f.backup, s.path("forged.backup"))
		f.backup = s.path("forged.backup")
	}
	if statement {
		sig := f.database + ".sig"
		s.another(f)
		by.resign(ctx, sig, s.path("another.sig"))
	}
}
