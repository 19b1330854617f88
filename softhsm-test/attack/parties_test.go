package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
)

const jsonType = "application/json"

// enrolment attacks activation codes and the proofs of an enrolment.
func enrolment(ctx context.Context, a *Arena) {
	code := a.Invitation(ctx, "client/enrol-alice", adminapi.Invite{})
	alice := a.Full()
	req := alice.request(ctx, code)
	e := applicant{a, alice, req}
	for _, attack := range []func(context.Context){e.flippedProofs, e.unproven, e.brute, e.kinds} {
		a.Leaves(ctx, "enrolments that are refused", Nothing, func() { attack(ctx) })
	}
	e.reuse(ctx)
}

// applicant holds an enrolment that would be good.
type applicant struct {
	*Arena
	phone *Phone
	req   enrol.Request
}

// post sends an enrolment, one case.
func (e applicant) post(ctx context.Context, what string, body []byte, want ...Verdict) {
	answer := e.PostJSON(ctx, "/v1/enrol", body)
	got := Sent{What: what, Message: body, Answer: answer.Body, Verdict: answer.Verdict()}
	for _, other := range want[1:] {
		if got.Verdict == other {
			e.Expect(got, other)
			return
		}
	}
	e.Expect(got, want[0])
}

func (e applicant) send(ctx context.Context, what string, req enrol.Request, want ...Verdict) {
	body := harness.Must(json.Marshal(req))
	e.post(ctx, what, body, want...)
}

var (
	badFormat = HTTP(400, protocol.CodeFormat)
	badProof  = HTTP(400, protocol.CodeSignature)
	noEntry   = HTTP(403, protocol.CodeRefused)
	welcome   = HTTP(200, 0)
)

// flippedProofs changes every bit of what the proofs are and of what they cover.
func (e applicant) flippedProofs(ctx context.Context) {
	for _, field := range []struct {
		name string
		size int
		of   func(*enrol.Request, *enrol.Password) []byte
	}{
		{"proof", 64, func(r *enrol.Request, _ *enrol.Password) []byte { return r.Proof[:] }},
		{"uv_proof", 64, func(r *enrol.Request, _ *enrol.Password) []byte { return r.UVProof[:] }},
		{"signing_key", 33, func(r *enrol.Request, _ *enrol.Password) []byte { return r.SigningKey[:] }},
		{"uv_key", 33, func(r *enrol.Request, _ *enrol.Password) []byte { return r.UVKey[:] }},
		{"password.ephemeral", 33, func(_ *enrol.Request, p *enrol.Password) []byte { return p.Ephemeral[:] }},
		{"password.wrapped", 40, func(_ *enrol.Request, p *enrol.Password) []byte { return p.Wrapped[:] }},
		{"activation_code", 20, func(r *enrol.Request, _ *enrol.Password) []byte {
			return r.ActivationCode.Secret[:]
		}},
	} {
		Each(8*field.size, func(bit int) {
			req, p, uv := e.req, *e.req.Password, *e.req.UVKey
			req.Password, req.UVKey = &p, &uv
			field.of(&req, &p)[bit/8] ^= 0x80 >> (bit % 8)
			body, err := json.Marshal(req)
			if err != nil {
				return // an activation code that JSON cannot carry
			}
			e.post(ctx, fmt.Sprintf("bit %d of %s", bit, field.name), body, badProof, badFormat)
		})
	}
	e.flippedText(ctx)
}

// flippedText changes every bit of the proof's characters in the JSON itself.
func (e applicant) flippedText(ctx context.Context) {
	body := harness.Must(json.Marshal(e.req))
	text := harness.Must(protocol.Base64(e.req.Proof[:]).MarshalText())
	at := bytes.Index(body, text)
	Each(8*len(text), func(bit int) {
		e.post(ctx, fmt.Sprintf("bit %d of the proof's text", bit), link.Flip(body, 8*at+bit), badProof, badFormat)
	})
}

// unproven: bodies that are not good enrolments.
func (e applicant) unproven(ctx context.Context) {
	foreign := harness.Must(enrol.Sign(ctx, e.req, NewKey(), *e.phone.UV))
	unverified := harness.Must(enrol.Sign(ctx, e.req, e.phone.Key, NewKey()))
	same := e.req
	same.UVKey = &same.SigningKey
	same = harness.Must(enrol.Sign(ctx, same, e.phone.Key, e.phone.Key))
	stripped := e.req
	stripped.Password = nil
	bare := e.req
	bare.UVKey = nil
	for _, c := range []struct {
		what string
		req  enrol.Request
		want Verdict
	}{
		{"proof by another key", foreign, badProof},
		{"UV proof by another key", unverified, badProof},
		{"one key for both", same, badFormat},
		{"password taken out", stripped, badProof},
		{"UV key taken out", bare, badProof},
	} {
		e.send(ctx, c.what, c.req, c.want)
	}
	body := harness.Must(json.Marshal(e.req))
	for what, raw := range map[string]string{
		"nothing": "", "null": "null", "no object": "[]", "a member twice": `{"proof":"",` + string(body[1:]),
		"an unknown member": `{"x":1,` + string(body[1:]), "something behind": string(body) + "{}", "cut": string(body[:len(body)-1]),
		"1 MiB": string(make([]byte, 1<<20)),
	} {
		e.post(ctx, "JSON: "+what, []byte(raw), badFormat)
	}
}

// brute tries codes that were not given out, with good proofs.
func (e applicant) brute(ctx context.Context) {
	Each(300, func(i int) {
		code := enrol.NewActivationCode(e.req.ActivationCode.Root, [13]byte(Random(13)))
		if i%3 == 0 {
			code.Root = protocol.RootHash(Random(16))
		}
		req := e.req
		req.ActivationCode = code
		req = harness.Must(enrol.Sign(ctx, req, e.phone.Key, *e.phone.UV))
		e.send(ctx, "a guessed code", req, noEntry)
	})
}

// kinds: the code of a phone is none of a device, nor the other way round.
func (e applicant) kinds(ctx context.Context) {
	csr := Request()
	body := harness.Must(json.Marshal(enrol.DeviceRequest{ActivationCode: e.req.ActivationCode, CSR: csr}))
	answer := e.PostJSON(ctx, "/v1/enrol/device", body)
	e.Expect(Sent{What: "a phone's code for a device", Message: body, Answer: answer.Body, Verdict: answer.Verdict()}, noEntry)
}

// reuse: a code works once, for one request; a key enrols once.
func (e applicant) reuse(ctx context.Context) {
	enrolled := Effects{"client": 1, "restraint": 1, "record/client": 1, "invitation": 0, "head": 0}
	e.Leaves(ctx, "the enrolment and its repeats", enrolled, func() {
		for _, what := range []string{"the enrolment", "the same bytes again"} {
			e.send(ctx, what, e.req, welcome)
		}
	})
	other := e.Full().request(ctx, e.req.ActivationCode)
	second := e.Invitation(ctx, "client/enrol-again", adminapi.Invite{})
	taken := e.phone.request(ctx, second)
	device := e.Invitation(ctx, "device/enrol-gate", adminapi.Invite{})
	wrong := e.Full().request(ctx, device)
	e.Leaves(ctx, "codes used again", Nothing, func() {
		e.send(ctx, "another key with the used code", other, noEntry)
		e.send(ctx, "the enrolled key with another code", taken, HTTP(409, protocol.CodeRefused))
		e.send(ctx, "a device's code for a phone", wrong, noEntry)
	})
	fresh := e.Full().request(ctx, second)
	e.send(ctx, "the other code is still good", fresh, welcome)
}

// identity calls the API without a certificate, with a foreign one, and with one that was suspended
// or revoked.
func identity(ctx context.Context, a *Arena) {
	alice := a.Plain(ctx, "identity-alice")
	s := a.AskFor(alice, Door, 1).Must(ctx)
	m3 := s.M3(ctx, s.Honest())
	calls := []Post{
		{Path: "/v1/apply", Type: deviceapi.BodyType, Body: s.Req.Marshal()},
		{Path: "/v1/countersign", Type: deviceapi.BodyType, Body: deviceapi.CountersignRequest{Handle: s.Handle, M3: m3}.Marshal()},
		{Path: "/v1/outcome", Type: deviceapi.BodyType, Body: deviceapi.OutcomeRequest{Performed: true}.Marshal()},
		{Path: "/v1/renew", Type: jsonType, Body: []byte(`{"csr":""}`)},
	}
	config := a.TLS()
	nobody := Client(config)
	defer nobody.CloseIdleConnections()
	a.Leaves(ctx, "calls of nobody", Nothing, func() {
		for _, call := range calls {
			answer := a.PostAs(ctx, nobody, call)
			a.Expect(Sent{What: call.Path + " without a certificate", Message: call.Body, Answer: answer.Body, Verdict: answer.Verdict()}, HTTP(403, protocol.CodeDevice))
		}
		strangers(ctx, a, calls)
	})
	s, m3 = noLonger(ctx, a, s)
	a.Leaves(ctx, "the till itself", Spent, func() {
		r := s.Send(ctx, m3)
		a.Expect(r.Named("the till itself"), Approved)
	})
}

// strangers: TLS itself refuses foreign certificates and TLS 1.2.
func strangers(ctx context.Context, a *Arena, calls []Post) {
	foreign := Certificate("spiffe://dev.countersign.example/device/till")
	for what, change := range map[string]func(*tls.Config){
		"a foreign certificate with the till's name": func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }
		},
		"TLS 1.2": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		config := a.TLS()
		change(config)
		client := Client(config)
		for _, call := range calls {
			var answer Answer
			err := harness.Try(func() { answer = a.PostAs(ctx, client, call) })
			a.Check(err != nil, "%s by %s: answered %d: %s", call.Path, what, answer.Status, answer.Body)
		}
		client.CloseIdleConnections()
	}
}

// noLonger: a device that is suspended or revoked, and one that asks for the transaction of
// another.
func noLonger(ctx context.Context, a *Arena, s *Session) (later *Session, m3 []byte) {
	gate := a.EnrolDevice(ctx, "identity-gate")
	defer gate.Close()
	paid := decided(ctx, a, a.Pay(s.Phone, 100))
	report(ctx, a, gate, paid)
	s.P1 = s.Phone.Next(Door, 1) // the payment has spent a later serial
	later = s.Must(ctx)
	m3 = later.M3(ctx, later.Honest())
	for _, verb := range []string{"suspend", "revoke"} {
		a.Do(ctx, "device/identity-gate/"+verb)
		a.Leaves(ctx, "a device after "+verb, Nothing, func() {
			r := later.SendAt(ctx, gate, deviceapi.CountersignRequest{Handle: later.Handle, M3: m3})
			a.Expect(r.Named("countersign after "+verb), HTTP(403, protocol.CodeDevice))
			asked := later.Ask
			asked.At = gate
			applied := asked.Apply(ctx)
			a.Expect(applied.Applied, HTTP(403, protocol.CodeDevice))
		})
	}
	return later, m3
}

// report reports the outcome of a transaction.
func report(ctx context.Context, a *Arena, by *device.Device, t truth) {
	body := deviceapi.OutcomeRequest{Transaction: t.decision.Transaction, Performed: false}.Marshal()
	a.Leaves(ctx, "the outcome of another's transaction", Nothing, func() {
		answer, err := by.Post(ctx, device.Call{Path: "/v1/outcome", Type: deviceapi.BodyType, Body: body})
		a.Expect(Sent{What: "outcome", Message: body, Answer: answer.Body, Verdict: HTTP(answer.Status, answer.Code)}, HTTP(http.StatusNotFound, protocol.CodeRefused))
		harness.Do(err)
	})
}
