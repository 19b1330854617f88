package attack

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"countersign/appliance/admin"
	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// Key is an ECDSA key in memory.
type Key = phone.Key

// NewKey makes a P-256 key.
func NewKey() Key { return phone.NewKey() }

// Phone is an enrolled client, or a stranger.
type Phone struct {
	phone.Phone
	Name string
	Cert []byte // its client certificate
}

// TrustDocument is the answer of GET /v1/trust.
func (a *Arena) TrustDocument(ctx context.Context) protocol.TrustDocument {
	req := harness.Must(http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/v1/trust", nil))
	res := harness.Must(a.https.Do(req))
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	raw := harness.Must(io.ReadAll(res.Body))
	return harness.Must(protocol.ParseTrustDocument(raw))
}

// Now is Unix seconds.
func Now() uint64 { return uint64(time.Now().Unix()) }

// Stranger makes a phone that is not enrolled.
func (a *Arena) Stranger() *Phone { return &Phone{Phone: *phone.Stranger(a.till.Trust)} }

// Full is a stranger with password and UV key.
func (a *Arena) Full() *Phone {
	p := a.Stranger()
	p.Give(phone.Full())
	return p
}

// Plain enrols a phone without password and UV key.
func (a *Arena) Plain(ctx context.Context, name string) *Phone {
	return a.Enrol(ctx, name, a.Stranger())
}

// Equipped enrols a phone with both, and with roles.
func (a *Arena) Equipped(ctx context.Context, name string, roles ...string) *Phone {
	return a.Enrol(ctx, name, a.Full(), roles...)
}

// Enrol enrols a stranger.
func (a *Arena) Enrol(ctx context.Context, name string, p *Phone, roles ...string) *Phone {
	code := a.Invitation(ctx, "client/"+name, admin.Invite{Roles: roles})
	body := harness.Must(json.Marshal(p.request(ctx, code)))
	answer := a.PostJSON(ctx, "/v1/enrol", body)
	if answer.Status != http.StatusOK {
		harness.Fail("enrolling %s: %s", name, answer.Verdict())
		return nil
	}
	response := harness.Must(protocol.ParseEnrolResponse(answer.Body))
	p.Name, p.Cert = name, response.ClientCert
	return p
}

// request is the enrolment request of an honest phone.
func (p *Phone) request(ctx context.Context, code protocol.ActivationCode) protocol.EnrolRequest {
	_, req := harness.Must2(p.EnrolRequest(ctx, code))
	return req
}

// Next is an application at a level, with the next serial.
func (p *Phone) Next(service protocol.Service, level protocol.Level) protocol.P1 {
	p1 := p.Phone.Next(service)
	p1.Level = level
	return p1
}

// Random is n random bytes.
func Random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, crypto/rand
	return b
}
