package faults

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/shim"
)

// badActions are the ways in which a signature can be bad; 64 bytes are P-256, so that
// MACs are left alone.
var badActions = []string{"garbage", "bitflip", "zeros", "short", "wrongkey"}

func bad(action, chance string) string { return "C_Sign " + action + " size=64 p=" + chance }

// garbage lets the token of a whole appliance make bad signatures.
func garbage(ctx context.Context, s *stage) {
	s.inRush(ctx, func(r *rush) {
		for _, action := range badActions {
			harness.Do(r.strike(bad(action, "0.1")))
			harness.Do(during(ctx, aWhile))
			r.Say("%s: %d requests, turned away %d", action, len(r.journal.since(r.struck, time.Now())), len(r.refusals(r.struck, time.Now())))
		}
		r.enrolmentsSpoiled(ctx)
		r.quarantine(ctx)
		r.retriedElsewhere(ctx)
	})
}

// unavailable is the exit code of a command that had no answer of the HSM.
const unavailable = 69

// enrolmentsSpoiled: certificates are signatures too, and what an enrolment has written
// under a bad MAC would never be found again.
func (r *rush) enrolmentsSpoiled(ctx context.Context) {
	harness.Do(r.strike(bad("wrongkey", "0.4"), "C_Sign garbage size=32 p=0.2"))
	const each = 8
	var refused, wrong int
	var enrolled []*customer
	for i := range 2 * each {
		c, err := r.enrolOne(ctx, i)
		var byPhone *phone.Refusal
		var byDevice *device.Refusal
		var byCommand *harness.Exit
		switch {
		case errors.As(err, &byPhone), errors.As(err, &byDevice), errors.As(err, &byCommand) && byCommand.Code == unavailable:
			refused++
		case err != nil:
			wrong++
			r.Say("enrolment %d: %v", i, err)
		default:
			enrolled = append(enrolled, c)
		}
	}
	r.Check(wrong == 0, "enrolments of phones and devices %d, refused %d, with a bad certificate %d", 2*each, refused, wrong)
	harness.Do(r.Clear())
	r.allWork(ctx, enrolled)
}

// allWork: each of them authorizes.
func (r *rush) allWork(ctx context.Context, enrolled []*customer) {
	before := len(r.journal.denials())
	for _, c := range enrolled {
		err := harness.Until(ctx, "an answer for who was enrolled", func() (bool, error) { return c.step(ctx), nil })
		if err != nil {
			harness.Do(errors.Join(err, r.journal.last()))
			return
		}
	}
	denied := len(r.journal.denials()) - before
	r.Check(denied == 0, "who was enrolled meanwhile authorizes: %d of %d", len(enrolled)-denied, len(enrolled))
}

// enrolOne enrols a phone, or a device with a phone that is used there, and verifies its
// certificate.
func (r *rush) enrolOne(ctx context.Context, i int) (*customer, error) {
	noun := []string{"client", "device"}[i%2]
	code, err := r.Invite(ctx, noun, fmt.Sprintf("spoiled-%d", i))
	if err != nil {
		return nil, err
	}
	if noun == "client" {
		p, err := phone.Enrol(ctx, r.URL, code) // which verifies it
		return &customer{Phone: p, journal: r.journal, way: &overAPI{gate: r.gates[0], journal: r.journal}}, err
	}
	gate, err := device.Enrol(ctx, device.Config{URL: r.URL, CA: r.CA}, code)
	if err != nil {
		return nil, err
	}
	r.gates = append(r.gates, gate)
	if err := verifyChain(gate.Chain, r.CA); err != nil {
		return nil, err
	}
	p, err := r.newPhone(ctx, fmt.Sprintf("at-spoiled-%d", i))
	return &customer{Phone: p, journal: r.journal, way: &overAPI{gate: gate, journal: r.journal}}, err
}

// verifyChain holds a device's certificate against the authorities of the appliance.
func verifyChain(chain []string, ca string) error {
	raw, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return errors.New("no certificate in ca.pem")
	}
	block, _ := pem.Decode([]byte(chain[0]))
	if block == nil {
		return errors.New("certificate is no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// quarantine: bad signatures one after the other take the worker out, and are told.
func (r *rush) quarantine(ctx context.Context) {
	const metric = "countersign_hsm_quarantines_total"
	before := harness.Must(r.ops.metric(ctx, metric))
	harness.Do(r.strike("C_Sign garbage size=64 each=6 n=12"))
	seen := before
	_ = harness.Until(ctx, "a quarantine", func() (bool, error) { // that there is none, the check says
		seen = harness.Must(r.ops.metric(ctx, metric))
		return seen > before || time.Since(r.struck) > back, nil
	})
	took := time.Since(r.struck).Round(time.Millisecond)
	r.Check(seen > before, "three bad signatures of a worker in a row: %s rose by %.0f after %v", metric, seen-before, took)
	r.Check(strings.Contains(r.Log(), "quarantine"), "and the log says so")
	r.whole(ctx)
	harness.Do(r.Clear())
}

// retriedElsewhere: one bad signature is asked for again, of the other worker.
func (r *rush) retriedElsewhere(ctx context.Context) {
	r.stop() // one call at a time
	r.stop = func() {}
	r.settled(ctx)
	const tries = 3 // the appliance may look after its workers by a signature of its own
	var asked []int
	var worked error
	for range tries {
		asked, worked = r.askedAfterOneBad(ctx)
		if worked != nil || elsewhere(asked) {
			break
		}
	}
	r.Check(worked == nil, "one bad signature: the authorization is approved%s", because(worked))
	r.Check(elsewhere(asked), "one bad signature: made and asked for again by workers %v", asked)
	harness.Do(r.Clear())
}

func elsewhere(asked []int) bool {
	return slices.ContainsFunc(asked, func(pid int) bool { return pid != asked[0] })
}

// askedAfterOneBad makes one authorization. It returns the workers that were asked for signatures,
// from the one with the bad signature on. "sleep 0" logs the calls.
func (r *rush) askedAfterOneBad(ctx context.Context) (asked []int, worked error) {
	harness.Do(r.Set(r.once("C_Sign garbage size=64"), "C_Sign sleep 0 size=64"))
	before := harness.Must(r.Injected())
	worked = r.works(ctx)
	all := harness.Must(r.Injected())
	all = all[len(before):]
	at := slices.IndexFunc(all, func(f shim.Fault) bool { return f.Action != "sleep" })
	if at < 0 {
		return nil, worked
	}
	for _, f := range all[at:] {
		asked = append(asked, f.PID)
	}
	return asked, worked
}

// poolShim steers the worker processes of the harness, apart from the appliance's.
func (s *stage) poolShim() shim.Shim {
	dir := s.dir + "/pool"
	harness.Do(os.Mkdir(dir, 0o700))
	return harness.Must(shim.New(filepath.Dir(s.Module), dir))
}
