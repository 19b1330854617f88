package world

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"time"

	"countersign/appliance/change"
	"countersign/appliance/change/requests"
	"countersign/appliance/enrol"
	"countersign/appliance/rules"
	"countersign/appliance/store"
	"countersign/policy"
	"countersign/protocol"
	protoenrol "countersign/protocol/enrol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// Operator is an administrator with a key in memory.
type Operator struct {
	Name   string
	Public protocol.PublicKey
	key    change.FileKey
}

func newOperator(name string) (Operator, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Operator{}, err
	}
	public, err := protocol.CompressKey(&private.PublicKey)
	return Operator{name, public, change.FileKey{PrivateKey: private}}, err
}

// Sign countersigns a change request.
func (o Operator) Sign(ctx context.Context, h change.Hash) ([]byte, error) {
	s, err := change.Sign(ctx, o.key, o.Public, h)
	if err != nil {
		return nil, err
	}
	return s.Marshal(), nil
}

// appoint makes three administrators; mallory is none, and has a key.
func (b *builder) appoint(ctx context.Context) {
	for _, name := range []string{"ann", "ben", "cat", "mallory"} {
		o := harness.Must(newOperator(name))
		if b.Operators[name] = o; name == "mallory" {
			continue
		}
		harness.Must(b.Requests.Ask(ctx, requests.DraftAdmin(name, o.Public)))
	}
}

// cast are the phones. bob is the attacker's accomplice: a client like any other, whose
// keys the attacker has. mallory was never enrolled.
var cast = []struct {
	name  string
	full  bool // with password and UV key
	roles []string
}{
	{"alice", true, nil},
	{"carol", true, nil},
	{"fred", true, []string{"approver"}},
	{"bob", true, nil},
	{"rob", false, nil},
	{"ruth", true, []string{"approver"}},
	{"sam", true, nil},
	{"dora", true, nil},
	{"lena", true, nil},
}

// populate enrols devices and phones.
func (b *builder) populate(ctx context.Context) {
	for _, d := range []enrol.Invite{{Name: "gate"}, {Name: "safe", Display: "The safe", Floor: 2}, {Name: "shed"}} {
		d.Kind = store.KindDevice
		code, _ := harness.Must2(b.Enrol.Invite(ctx, d))
		b.Codes["used by "+d.Name] = code
		harness.Must(b.Enrol.Device(ctx, DeviceRequest(code)))
	}
	for _, c := range cast {
		code, _ := harness.Must2(b.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindClient, Name: c.name, Roles: c.roles}))
		b.Codes["used by "+c.name] = code
		p := b.Stranger(c.full)
		harness.Must(b.EnrolPhone(ctx, p, code))
		b.Phones[c.name] = p
	}
	b.Phones["mallory"] = b.Stranger(true)
}

// Stranger makes a phone that is not enrolled, with password and UV key if full.
func (w *World) Stranger(full bool) *phone.Phone {
	p := phone.Stranger(w.Genuine)
	if full {
		p.Give(phone.Full())
	}
	return p
}

// EnrolPhone enrols a phone.
func (h *House) EnrolPhone(ctx context.Context, p *phone.Phone, code protoenrol.ActivationCode) (protoenrol.Response, error) {
	body, _, err := p.EnrolRequest(ctx, code)
	if err != nil {
		return protoenrol.Response{}, err
	}
	raw, err := h.Enrol.Client(ctx, body)
	if err != nil {
		return protoenrol.Response{}, err
	}
	return protoenrol.ParseResponse(raw)
}

// CSR is a request for a certificate of a new key.
func CSR() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // never fails, crypto/rand
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		panic(err) // of a key of P-256
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// DeviceRequest is the body with which a device enrols.
func DeviceRequest(code protoenrol.ActivationCode) []byte {
	body, err := json.Marshal(protoenrol.DeviceRequest{ActivationCode: code, CSR: CSR()})
	if err != nil {
		panic(err) // of two strings
	}
	return body
}

// depart has those leave who will have left.
func (b *builder) depart(ctx context.Context) {
	_, err1 := b.Parties.SetClientStatus(ctx, "sam", store.Suspended)
	_, err2 := b.Parties.SetClientStatus(ctx, "ruth", store.Revoked)
	_, err3 := b.Parties.SetDeviceStatus(ctx, "shed", store.Revoked)
	_, err4 := b.Requests.SuspendAdmin(ctx, "ben")
	harness.Do(errors.Join(err1, err2, err3, err4))
}

// quorums are what the policy in force adds to the default.
const quorums = `[quorum]
local = true
"key.destroy" = 2
"key.backup" = 2
"root.rotate" = 2
"device.invite" = 2
"admin.add" = 2
"admin.revoke" = 2
"policy.apply" = 2
`

// Policies: the one in force, and one that would grant everything.
func strictPolicy() []byte {
	return bytes.Replace(policy.Default(), []byte("[quorum]\nlocal = true\n"), []byte(quorums), 1)
}

// lenientPolicy differs from the default in nothing but a level.
func lenientPolicy() []byte {
	return bytes.Replace(policy.Default(), []byte("from = \"10000.00\", level = 4"), []byte("from = \"10000.00\", level = 2"), 1)
}

// request asks for the changes whose time is before the others.
func (b *builder) request(ctx context.Context) {
	b.Lenient = lenientPolicy()
	harness.Must(b.Requests.Ask(ctx, rules.Draft(strictPolicy())))
	strict := harness.Must(b.Rules.Policy(ctx))
	b.Strict = strict.Hash
	stale := harness.Must(b.Requests.Ask(ctx, requests.DraftAdmin("dan", b.Operators["mallory"].Public)))
	b.Changes["failed"] = stale
}

// asksFor asks for the invitation of a device; the code is kept under the device's name.
func (b *builder) asksFor(ctx context.Context, name string, life time.Duration) (requests.Change, error) {
	code, _, err := b.Enrol.Invite(ctx, enrol.Invite{Kind: store.KindDevice, Name: name, Life: life})
	b.Codes[name] = code
	var waits *requests.Waiting
	if !errors.As(err, &waits) {
		return requests.Change{}, errors.Join(errors.New("a device was invited without a second vote"), err)
	}
	return waits.Change, nil
}

// signed has ann countersign.
func (b *builder) signed(ctx context.Context, c requests.Change) (requests.Change, error) {
	raw, err := b.Operators["ann"].Sign(ctx, c.Hash)
	if err != nil {
		return c, err
	}
	return b.Requests.Sign(ctx, c.Hash.ID(), raw)
}
