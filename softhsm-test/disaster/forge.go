package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/trust"
)

// forger has the files, keys of his own, and certificates by them.
type forger struct {
	decision  soft
	root      protocol.PublicKey
	rootCert  []byte
	certified []byte // KeyCert of decision
}

// soft is a key in memory.
type soft struct{ *ecdsa.PrivateKey }

func newForger(ctx context.Context) (f forger, err error) {
	root, errRoot := newSoft()
	decision, errDecision := newSoft()
	if err := errors.Join(errRoot, errDecision); err != nil {
		return f, err
	}
	rootKey, errRoot := protocol.CompressKey(&root.PublicKey)
	decisionKey, errDecision := protocol.CompressKey(&decision.PublicKey)
	rootCert, errCert := trust.SignRootCert(ctx, root, trust.RootCert{Number: 1, Key: rootKey})
	certified, errKeyCert := trust.SignKeyCert(ctx, root, trust.KeyCert{Epoch: 1, Use: trust.UseDecision, Key: decisionKey, NotAfter: 1 << 40})
	return forger{decision, rootKey, rootCert, certified}, errors.Join(errRoot, errDecision, errCert, errKeyCert)
}

func newSoft() (soft, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return soft{key}, err
}

func (s soft) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
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

// resign signs what a genuine file says, the genuine roots among it, with a fresh root.
func (f forger) resign(ctx context.Context, from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var file signedFile
	if err := cbor.Unmarshal(raw, &file); err != nil {
		return err
	}
	digest := sha256.Sum256(protocol.SigStructure("countersign "+file.Kind+" v1", file.Payload))
	file.Roots, file.Cert = [][]byte{f.rootCert}, f.certified
	if file.Signature, err = f.decision.SignDigest(ctx, digest[:]); err != nil {
		return err
	}
	if raw, err = cbor.Marshal(file); err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o600)
}

// resigned puts files by a forger in place of the backup, of the statement, or of both.
func (s *stage) resigned(ctx context.Context, f *files, keys, statement bool) error {
	by, err := newForger(ctx)
	if err != nil {
		return err
	}
	if keys {
		err = by.resign(ctx, f.backup, s.path("forged.backup"))
		f.backup = s.path("forged.backup")
	}
	if statement && err == nil {
		sig := f.database + ".sig"
		err = errors.Join(s.another(f), by.resign(ctx, sig, s.path("another.sig")))
	}
	return err
}
