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
)

// forger has the files, and keys of his own.
type forger struct{ root, decision soft }

// soft is a key in memory.
type soft struct{ *ecdsa.PrivateKey }

func newForger() (f forger, err error) {
	root, errRoot := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	decision, errDecision := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return forger{soft{root}, soft{decision}}, errors.Join(errRoot, errDecision)
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

func (s soft) public() (protocol.PublicKey, error) { return protocol.CompressKey(&s.PublicKey) }

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
	root, errRoot := f.root.public()
	decision, errDecision := f.decision.public()
	first, errFirst := protocol.SignRootCert(ctx, f.root, protocol.RootCert{Number: 1, Key: root})
	cert, errCert := protocol.SignKeyCert(ctx, f.root, protocol.KeyCert{Epoch: 1, Use: protocol.UseDecision, Key: decision, NotAfter: 1 << 40})
	digest := sha256.Sum256(protocol.SigStructure("countersign "+file.Kind+" v1", file.Payload))
	signature, errSign := f.decision.SignDigest(ctx, digest[:])
	if err := errors.Join(errRoot, errDecision, errFirst, errCert, errSign); err != nil {
		return err
	}
	file.Roots, file.Cert, file.Signature = [][]byte{first}, cert, signature
	if raw, err = cbor.Marshal(file); err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o600)
}

// resigned puts files by a forger in place of the backup, of the statement, or of both.
func (s *stage) resigned(ctx context.Context, f *files, keys, statement bool) error {
	by, err := newForger()
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
