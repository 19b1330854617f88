package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"countersign/appliance/adminapi"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/softhsm-test/attack/arena"
	"countersign/softhsm-test/attack/forge"
	"countersign/softhsm-test/rig/device"
)

const jsonType = "application/json"

// enrolment attacks activation codes and the proofs of an enrolment.
func enrolment(ctx context.Context, a *arena.Arena) error {
	code, err := a.Invitation(ctx, "client/enrol-alice", adminapi.Invite{})
	if err != nil {
		return err
	}
	alice := a.Full()
	req, err := alice.EnrolRequest(ctx, code)
	if err != nil {
		return err
	}
	e := applicant{a, alice, req}
	for _, attack := range []func(context.Context) error{e.flippedProofs, e.unproven, e.brute, e.kinds} {
		if err := a.Leaves(ctx, "enrolments that are refused", arena.Nothing, func() error { return attack(ctx) }); err != nil {
			return err
		}
	}
	return e.reuse(ctx)
}

// applicant holds an enrolment that would be good.
type applicant struct {
	*arena.Arena
	phone *arena.Phone
	req   enrol.Request
}

// post sends an enrolment, one case.
func (e applicant) post(ctx context.Context, what string, body []byte, want ...arena.Verdict) error {
	answer, err := e.PostJSON(ctx, "/v1/enrol", body)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	got := arena.Sent{What: what, Message: body, Answer: answer.Body, Verdict: answer.Verdict()}
	for _, other := range want[1:] {
		if got.Verdict == other {
			e.Expect(got, other)
			return nil
		}
	}
	e.Expect(got, want[0])
	return nil
}

func (e applicant) send(ctx context.Context, what string, req enrol.Request, want ...arena.Verdict) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return e.post(ctx, what, body, want...)
}

var (
	badFormat = arena.HTTP(400, protocol.CodeFormat)
	badProof  = arena.HTTP(400, protocol.CodeSignature)
	noEntry   = arena.HTTP(403, protocol.CodeRefused)
	welcome   = arena.HTTP(200, 0)
)

// flippedProofs changes every bit of what the proofs are and of what they cover.
func (e applicant) flippedProofs(ctx context.Context) error {
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
		err := arena.Each(8*field.size, func(bit int) error {
			req, p, uv := e.req, *e.req.Password, *e.req.UVKey
			req.Password, req.UVKey = &p, &uv
			field.of(&req, &p)[bit/8] ^= 0x80 >> (bit % 8)
			body, err := json.Marshal(req)
			if err != nil {
				return nil // an activation code that JSON cannot carry
			}
			return e.post(ctx, fmt.Sprintf("bit %d of %s", bit, field.name), body, badProof, badFormat)
		})
		if err != nil {
			return err
		}
	}
	return e.flippedText(ctx)
}

// flippedText changes every bit of the proof's characters in the JSON itself.
func (e applicant) flippedText(ctx context.Context) error {
	body, err := json.Marshal(e.req)
	if err != nil {
		return err
	}
	text, err := protocol.Base64(e.req.Proof[:]).MarshalText()
	if err != nil {
		return err
	}
	at := bytes.Index(body, text)
	return arena.Each(8*len(text), func(bit int) error {
		return e.post(ctx, fmt.Sprintf("bit %d of the proof's text", bit), flip(body, 8*at+bit), badProof, badFormat)
	})
}

// unproven: what is not a good enrolment at all.
func (e applicant) unproven(ctx context.Context) error {
	foreign, err := enrol.Sign(ctx, e.req, arena.NewKey(), *e.phone.UV)
	if err != nil {
		return err
	}
	unverified, err := enrol.Sign(ctx, e.req, e.phone.Key, arena.NewKey())
	if err != nil {
		return err
	}
	same := e.req
	same.UVKey = &same.SigningKey
	if same, err = enrol.Sign(ctx, same, e.phone.Key, e.phone.Key); err != nil {
		return err
	}
	stripped := e.req
	stripped.Password = nil
	bare := e.req
	bare.UVKey = nil
	for _, c := range []struct {
		what string
		req  enrol.Request
		want arena.Verdict
	}{
		{"proof by another key", foreign, badProof},
		{"UV proof by another key", unverified, badProof},
		{"one key for both", same, badFormat},
		{"password taken out", stripped, badProof},
		{"UV key taken out", bare, badProof},
	} {
		if err := e.send(ctx, c.what, c.req, c.want); err != nil {
			return err
		}
	}
	body, err := json.Marshal(e.req)
	if err != nil {
		return err
	}
	for what, raw := range map[string]string{
		"nothing": "", "null": "null", "no object": "[]", "a member twice": `{"proof":"",` + string(body[1:]),
		"an unknown member": `{"x":1,` + string(body[1:]), "something behind": string(body) + "{}", "cut": string(body[:len(body)-1]),
	} {
		if err := e.post(ctx, "JSON: "+what, []byte(raw), badFormat); err != nil {
			return err
		}
	}
	return nil
}

// brute tries codes that were not given out, with good proofs.
func (e applicant) brute(ctx context.Context) error {
	return arena.Each(300, func(i int) error {
		code := enrol.NewActivationCode(e.req.ActivationCode.Root, [13]byte(arena.Random(13)))
		if i%3 == 0 {
			code.Root = protocol.RootHash(arena.Random(16))
		}
		req := e.req
		req.ActivationCode = code
		req, err := enrol.Sign(ctx, req, e.phone.Key, *e.phone.UV)
		if err != nil {
			return err
		}
		return e.send(ctx, "a guessed code", req, noEntry)
	})
}

// kinds: the code of a phone is none of a device, nor the other way round.
func (e applicant) kinds(ctx context.Context) error {
	csr, err := forge.Request()
	if err != nil {
		return err
	}
	body, err := json.Marshal(enrol.DeviceRequest{ActivationCode: e.req.ActivationCode, CSR: csr})
	if err != nil {
		return err
	}
	answer, err := e.PostJSON(ctx, "/v1/enrol/device", body)
	e.Expect(arena.Sent{What: "a phone's code for a device", Message: body, Answer: answer.Body, Verdict: answer.Verdict()}, noEntry)
	return err
}

// reuse: a code works once, for one request; a key enrols once.
func (e applicant) reuse(ctx context.Context) error {
	enrolled := arena.Effects{"client": 1, "restraint": 1, "record/client": 1, "invitation": 0, "head": 0}
	err := e.Leaves(ctx, "the enrolment and its repeats", enrolled, func() error {
		for _, what := range []string{"the enrolment", "the same bytes again"} {
			if err := e.send(ctx, what, e.req, welcome); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	other, err := e.Full().EnrolRequest(ctx, e.req.ActivationCode)
	if err != nil {
		return err
	}
	second, err := e.Invitation(ctx, "client/enrol-again", adminapi.Invite{})
	if err != nil {
		return err
	}
	taken, err := e.phone.EnrolRequest(ctx, second)
	if err != nil {
		return err
	}
	device, err := e.Invitation(ctx, "device/enrol-gate", adminapi.Invite{})
	if err != nil {
		return err
	}
	wrong, err := e.Full().EnrolRequest(ctx, device)
	if err != nil {
		return err
	}
	err = e.Leaves(ctx, "codes used again", arena.Nothing, func() error {
		return errors.Join(
			e.send(ctx, "another key with the used code", other, noEntry),
			e.send(ctx, "the enrolled key with another code", taken, arena.HTTP(409, protocol.CodeRefused)),
			e.send(ctx, "a device's code for a phone", wrong, noEntry),
		)
	})
	if err != nil {
		return err
	}
	fresh, err := e.Full().EnrolRequest(ctx, second)
	if err != nil {
		return err
	}
	return e.send(ctx, "the other code is still good", fresh, welcome)
}

// identity calls the API as nobody, as a stranger and as one who may no more.
func identity(ctx context.Context, a *arena.Arena) error {
	alice, err := a.Plain(ctx, "identity-alice")
	if err != nil {
		return err
	}
	s, err := a.AskFor(alice, arena.Door, 1).Must(ctx)
	if err != nil {
		return err
	}
	m3, err := s.M3(ctx, s.Honest())
	if err != nil {
		return err
	}
	calls := []arena.Post{
		{Path: "/v1/apply", Type: deviceapi.BodyType, Body: s.Req.Marshal()},
		{Path: "/v1/countersign", Type: deviceapi.BodyType, Body: deviceapi.CountersignRequest{Handle: s.Handle, M3: m3}.Marshal()},
		{Path: "/v1/outcome", Type: deviceapi.BodyType, Body: deviceapi.OutcomeRequest{Performed: true}.Marshal()},
		{Path: "/v1/renew", Type: jsonType, Body: []byte(`{"csr":""}`)},
	}
	config, err := a.TLS()
	if err != nil {
		return err
	}
	nobody := arena.Client(config)
	defer nobody.CloseIdleConnections()
	err = a.Leaves(ctx, "calls of nobody", arena.Nothing, func() error {
		for _, call := range calls {
			answer, err := a.PostAs(ctx, nobody, call)
			if err != nil {
				return err
			}
			a.Expect(arena.Sent{What: call.Path + " without a certificate", Message: call.Body, Answer: answer.Body, Verdict: answer.Verdict()}, arena.HTTP(403, protocol.CodeDevice))
		}
		return strangers(ctx, a, calls)
	})
	if err != nil {
		return err
	}
	if s, m3, err = noLonger(ctx, a, s); err != nil {
		return err
	}
	return a.Leaves(ctx, "the till itself", arena.Spent, func() error {
		r, err := s.Send(ctx, m3)
		a.Expect(r.Named("the till itself"), arena.Approved)
		return err
	})
}

// strangers: TLS itself refuses foreign certificates and TLS 1.2.
func strangers(ctx context.Context, a *arena.Arena, calls []arena.Post) error {
	foreign, err := forge.Certificate("spiffe://dev.countersign.example/device/till")
	if err != nil {
		return err
	}
	for what, change := range map[string]func(*tls.Config){
		"a foreign certificate with the till's name": func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }
		},
		"TLS 1.2": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		config, err := a.TLS()
		if err != nil {
			return err
		}
		change(config)
		client := arena.Client(config)
		for _, call := range calls {
			answer, err := a.PostAs(ctx, client, call)
			a.Check(err != nil, "%s by %s: answered %d: %s", call.Path, what, answer.Status, answer.Body)
		}
		client.CloseIdleConnections()
	}
	return nil
}

// noLonger: a device that is suspended or revoked, and one that asks for what is
// another's.
func noLonger(ctx context.Context, a *arena.Arena, s *arena.Session) (later *arena.Session, m3 []byte, err error) {
	gate, err := a.EnrolDevice(ctx, "identity-gate")
	if err != nil {
		return nil, nil, err
	}
	defer gate.Close()
	paid, err := decided(ctx, a, a.Pay(s.Phone, 100))
	if err != nil {
		return nil, nil, err
	}
	if err := report(ctx, a, gate, paid); err != nil {
		return nil, nil, err
	}
	s.P1 = s.Phone.Next(arena.Door, 1) // the payment has spent a later serial
	if later, err = s.Must(ctx); err != nil {
		return nil, nil, err
	}
	if m3, err = later.M3(ctx, later.Honest()); err != nil {
		return nil, nil, err
	}
	for _, verb := range []string{"suspend", "revoke"} {
		if err := a.Do(ctx, "device/identity-gate/"+verb); err != nil {
			return nil, nil, err
		}
		err := a.Leaves(ctx, "a device after "+verb, arena.Nothing, func() error {
			r, err := later.SendAt(ctx, gate, deviceapi.CountersignRequest{Handle: later.Handle, M3: m3})
			a.Expect(r.Named("countersign after "+verb), arena.HTTP(403, protocol.CodeDevice))
			if err != nil {
				return err
			}
			asked := later.Ask
			asked.At = gate
			applied, err := asked.Apply(ctx)
			if err != nil {
				return err
			}
			a.Expect(applied.Applied, arena.HTTP(403, protocol.CodeDevice))
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return later, m3, nil
}

// report tells the outcome of a transaction.
func report(ctx context.Context, a *arena.Arena, by *device.Device, t truth) error {
	body := deviceapi.OutcomeRequest{Transaction: t.decision.Transaction, Performed: false}.Marshal()
	return a.Leaves(ctx, "the outcome of another's transaction", arena.Nothing, func() error {
		answer, err := by.Post(ctx, device.Call{Path: "/v1/outcome", Type: deviceapi.BodyType, Body: body})
		a.Expect(arena.Sent{What: "outcome", Message: body, Answer: answer.Body, Verdict: arena.HTTP(answer.Status, answer.Code)}, arena.HTTP(http.StatusNotFound, protocol.CodeRefused))
		return err
	})
}
