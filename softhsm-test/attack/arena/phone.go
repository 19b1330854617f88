package arena

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// Key signs digests with an ECDSA key in memory.
type Key struct{ *ecdsa.PrivateKey }

// NewKey makes a P-256 key.
func NewKey() Key {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return Key{key}
}

// Point is the public key.
func (k Key) Point() protocol.PublicKey {
	p, err := protocol.CompressKey(&k.PublicKey)
	if err != nil {
		panic(err) // it is a point of P-256
	}
	return p
}

// SignDigest implements [protocol.DigestSigner].
func (k Key) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k.PrivateKey, digest)
	if err != nil {
		return nil, err
	}
	sig := make([]byte, protocol.SignatureSize)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig, nil
}

// Phone is an enrolled client, or a stranger. It has a password and a UV key if UV is
// not nil.
type Phone struct {
	Name    string
	ID      protocol.ClientID
	Key     Key
	UV      *Key
	K       password.Verifier
	Counter uint32 // of the newest serial
	Trust   trust.State
	Cert    []byte // its client certificate
}

// TrustDocument is the answer of GET /v1/trust.
func (a *Arena) TrustDocument(ctx context.Context) (trust.Document, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/v1/trust", nil)
	if err != nil {
		return trust.Document{}, err
	}
	res, err := a.https.Do(req)
	if err != nil {
		return trust.Document{}, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return trust.Document{}, err
	}
	return trust.ParseDocument(raw)
}

// Now is Unix seconds.
func Now() uint64 { return uint64(time.Now().Unix()) }

// Stranger is a phone that nobody has enrolled.
func (a *Arena) Stranger() *Phone {
	key := NewKey()
	return &Phone{Key: key, ID: protocol.ClientIDOf(key.Point()), Trust: a.till.Trust}
}

// Full is a stranger with password and UV key.
func (a *Arena) Full() *Phone {
	p, uv := a.Stranger(), NewKey()
	p.UV = &uv
	_, _ = rand.Read(p.K[:]) // never fails, crypto/rand
	return p
}

// Plain enrols a phone without password and UV key.
func (a *Arena) Plain(ctx context.Context, name string) (*Phone, error) {
	return a.Enrol(ctx, name, a.Stranger())
}

// Equipped enrols a phone with both, and with roles.
func (a *Arena) Equipped(ctx context.Context, name string, roles ...string) (*Phone, error) {
	return a.Enrol(ctx, name, a.Full(), roles...)
}

// Enrol enrols a stranger.
func (a *Arena) Enrol(ctx context.Context, name string, p *Phone, roles ...string) (*Phone, error) {
	code, err := a.Invitation(ctx, "client/"+name, adminapi.Invite{Roles: roles})
	if err != nil {
		return nil, err
	}
	req, err := p.EnrolRequest(ctx, code)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	answer, err := a.PostJSON(ctx, "/v1/enrol", body)
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK {
		return nil, fmt.Errorf("enrolling %s: %s", name, answer.Verdict())
	}
	response, err := enrol.ParseResponse(answer.Body)
	if err != nil {
		return nil, err
	}
	p.Name, p.Cert = name, response.ClientCert
	return p, nil
}

// EnrolRequest is what an honest phone asks with an activation code.
func (p *Phone) EnrolRequest(ctx context.Context, code enrol.ActivationCode) (enrol.Request, error) {
	req := enrol.Request{ActivationCode: code, SigningKey: p.Key.Point()}
	if p.UV == nil {
		return enrol.Sign(ctx, req, p.Key, nil)
	}
	point := p.UV.Point()
	req.UVKey = &point
	var err error
	if req.Password, err = p.wrapped(); err != nil {
		return req, err
	}
	return enrol.Sign(ctx, req, p.Key, *p.UV)
}

// wrapped is the phone's verifier for the appliance's enrol key.
func (p *Phone) wrapped() (*enrol.Password, error) {
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := protocol.CompressPoint(ephemeral.PublicKey().Bytes())
	if err != nil {
		return nil, err
	}
	enrolKey, ok := p.Trust.Key(trust.UseEnrol)
	if !ok {
		return nil, fmt.Errorf("phone: no enrol key")
	}
	wrapped, err := password.Wrap(p.K, ephemeral, derive.PasswordImport{
		Root: p.Trust.Root.RootID(), Ephemeral: point, Enrol: enrolKey.KeyCert.Key, SigningKey: p.Key.Point(),
	})
	if err != nil {
		return nil, err
	}
	d := password.Default
	return &enrol.Password{
		MemoryKiB: d.MemoryKiB, Iterations: d.Iterations, Parallelism: uint8(d.Parallelism), Ephemeral: point, Wrapped: [40]byte(wrapped),
	}, nil
}

// Next is an application at a level, with the next serial.
func (p *Phone) Next(service protocol.Service, level protocol.Level) message.P1 {
	p.Counter++
	return message.P1{Client: p.ID, Serial: NewSerial(p.Counter), Service: service, Level: level}
}

// NewSerial is a counter and 8 random bytes.
func NewSerial(counter uint32) protocol.Serial {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails, crypto/rand
	return protocol.NewSerial(counter, random)
}

// Random is n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, crypto/rand
	return b
}
