package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/softhsm-test/clienttest"
)

const right, wrong = "korrekt Pferd Ω", "falsch"

// cheap are the minimum parameters, for speed.
var cheap = password.Params{MemoryKiB: enrol.MinPasswordMemoryKiB, Iterations: enrol.MinPasswordIterations, Parallelism: 1}

// typist types passwords in turn, verifies the user, and records the prompts.
type typist struct {
	types []string

	asks     []PasswordAsk
	given    []Password
	verified int
	stranger bool
}

var errStranger, errNoMore = errors.New("stranger"), errors.New("no more passwords")

func (p *typist) Password(_ context.Context, ask PasswordAsk) (Password, error) {
	p.asks = append(p.asks, ask)
	if len(p.types) == 0 {
		return nil, errNoMore
	}
	typed := Password(p.types[0])
	p.types, p.given = p.types[1:], append(p.given, typed)
	return typed, nil
}

func (p *typist) VerifyUser(context.Context, Shown) error {
	if p.verified++; p.stranger {
		return errStranger
	}
	return nil
}

// levelClient is enrolled with a password and a UV key.
func levelClient(t *testing.T, a *clienttest.Appliance, p *typist) (c *Client, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	c = openClient(t, Config{Dir: dir, AnswerTimeout: 10 * time.Second, Passwords: p, Verifier: p})
	cfg := EnrolConfig{URL: a.Serve(), Code: a.Invite(), Password: Password(right), Params: cheap, UV: true}
	if s, err := c.Enrol(t.Context(), cfg); err != nil || !s.Factors.Has(protocol.FactorPassword|protocol.FactorUV) {
		t.Fatalf("%+v, %v", s, err)
	}
	return c, dir
}

func level(n protocol.Level) Request { return Request{Service: 100, Level: n} }

func TestLevels(t *testing.T) {
	a := clienttest.New(t)
	p := &typist{types: []string{right, right, "korrekt Pferd \u2126"}} // OHM SIGN, which NFKC turns into OMEGA
	c, dir := levelClient(t, a, p)
	link := clienttest.Dial(t, a.Listen("tcp"))
	for n, want := range map[protocol.Level]struct{ asks, verified int }{1: {0, 0}, 2: {1, 0}, 3: {1, 1}} {
		p.asks, p.verified = nil, 0
		r, err := c.Authorize(t.Context(), link, level(n), says(protocol.Approve))
		if err != nil || !r.Approved() || r.Level != n {
			t.Fatalf("level %v: %+v, %v", n, r, err)
		}
		if len(p.asks) != want.asks || p.verified != want.verified {
			t.Errorf("level %v: %d passwords, %d verifications", n, len(p.asks), p.verified)
		}
	}
	for _, typed := range p.given {
		if len(bytes.Trim(typed, "\x00")) != 0 {
			t.Errorf("password %q was not erased", []byte(typed))
		}
	}
	asked := len(p.asks)
	if r, err := c.Authorize(t.Context(), link, level(3), says(protocol.Refuse)); err != nil || r.Reason != protocol.CodeUserRefused || len(p.asks) != asked {
		t.Errorf("a refusal: %+v, %v", r, err)
	}
	p.types = []string{right}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openClient(t, Config{Dir: dir, Passwords: p, Verifier: p})
	if r, err := c.Authorize(t.Context(), link, level(2), says(protocol.Approve)); err != nil || !r.Approved() {
		t.Errorf("reopened: %+v, %v", r, err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	a := clienttest.New(t)
	c, dir := levelClient(t, a, &typist{})
	kept := *c.state.Enrolment.Password
	for _, text := range []string{
		fmt.Sprintf("%v %+v %#v %s", kept, kept, kept, kept), fmt.Sprintf("%v %+v %#v %s", Password(right), Password(right), Password(right), Password(right)),
		fmt.Sprintf("%+v", *c.state.Enrolment),
	} {
		if strings.Contains(text, right) || strings.Contains(text, fmt.Sprint(kept.DS[:])) || !strings.Contains(text, "redacted") && strings.Contains(text, "{") {
			t.Errorf("prints %s", text)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(right)) {
			t.Errorf("%s holds the password", path)
		}
		if info, _ := d.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFactorsThatAreMissing(t *testing.T) {
	a := clienttest.New(t)
	c, _ := enrolledClient(t, a)
	link := clienttest.Dial(t, a.Listen("tcp"))
	for n, want := range map[protocol.Level]protocol.Factors{2: protocol.FactorPassword, 3: protocol.FactorPassword | protocol.FactorUV} {
		var shown Shown
		_, err := c.Authorize(t.Context(), link, level(n), approverFunc(func(_ context.Context, s Shown) (protocol.Verdict, error) {
			shown = s
			return protocol.Approve, nil
		}))
		var missing *FactorError
		if !errors.As(err, &missing) || missing.Missing != want || !errors.Is(err, protocol.CodeLevel) || shown.Missing != want {
			t.Errorf("level %v: %v, shown %v", n, err, shown.Missing)
		}
		if r, err := c.Authorize(t.Context(), link, level(n), says(protocol.Refuse)); err != nil || r.Reason != protocol.CodeUserRefused {
			t.Errorf("level %v refused: %+v, %v", n, r, err)
		}
	}
	stranger := &typist{stranger: true}
	c, _ = levelClient(t, a, stranger)
	if _, err := c.Authorize(t.Context(), link, level(3), says(protocol.Approve)); !errors.Is(err, errStranger) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := c.Authorize(t.Context(), link, level(2), says(protocol.Approve)); !errors.Is(err, errNoMore) || c.state.Session != nil {
		t.Errorf("nothing typed: %v", err)
	}
	if len(a.Acts()) != 0 {
		t.Errorf("acts %v", a.Acts())
	}
}

func TestWrongPasswords(t *testing.T) {
	for name, tc := range map[string]struct {
		types    []string
		approved bool
		left     []uint64 // shown at the second and third prompt
	}{
		"second is right": {types: []string{wrong, right}, approved: true, left: []uint64{2}},
		"third is right":  {types: []string{wrong, wrong, right}, approved: true, left: []uint64{2, 1}},
		"all wrong":       {types: []string{wrong, wrong, wrong, right}, left: []uint64{2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			a, p := clienttest.New(t), &typist{types: tc.types}
			c, _ := levelClient(t, a, p)
			r, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), level(3), says(protocol.Approve))
			if err != nil || r.Approved() != tc.approved || !r.Final() || !tc.approved && r.Reason != protocol.CodePassword {
				t.Fatalf("%+v, %v", r, err)
			}
			var left []uint64
			for _, ask := range p.asks[1:] {
				left = append(left, *ask.TriesLeft)
			}
			if fmt.Sprint(left) != fmt.Sprint(tc.left) || p.asks[0].TriesLeft != nil || p.verified != len(p.asks) {
				t.Errorf("told %v, asked %d times, verified %d", left, len(p.asks), p.verified)
			}
			if c.state.Session != nil || len(a.Acts()) != map[bool]int{true: 1}[tc.approved] {
				t.Errorf("session %v, acts %v", c.state.Session, a.Acts())
			}
		})
	}
}

// TestWrongPasswordLeft: the user does not know the password, then remembers it or gives up.
func TestWrongPasswordLeft(t *testing.T) {
	for name, next := range map[string]func(t *testing.T, c *Client, p *typist, address string){
		"resumed": func(t *testing.T, c *Client, p *typist, address string) {
			p.types = []string{wrong, right}
			if r, err := c.Resume(t.Context(), clienttest.Dial(t, address)); err != nil || !r.Approved() || r.Serial.Counter() != 1 {
				t.Errorf("%+v, %v", r, err)
			}
		},
		"another one": func(t *testing.T, c *Client, _ *typist, address string) {
			if r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), door(), says(protocol.Approve)); err != nil || !r.Approved() {
				t.Errorf("%+v, %v", r, err)
			}
			list, err := c.Receipts()
			if err != nil || len(list) != 2 || list[0].Approved() || !list[0].Final() || list[0].Reason != protocol.CodePassword {
				t.Errorf("receipts %+v, %v", list, err)
			}
		},
		"too late": func(t *testing.T, c *Client, _ *typist, _ string) {
			c.now = func() time.Time { return time.Now().Add(clienttest.DefaultTTL * time.Second) }
			_, err := c.Resume(t.Context(), nil)
			var retry *RetryError
			if !errors.As(err, &retry) || errors.Is(err, ErrUnknownOutcome) {
				t.Errorf("error %v", err)
			}
			if list, err := c.Receipts(); err != nil || len(list) != 1 || !list[0].Final() || list[0].Approved() {
				t.Errorf("receipts %+v, %v", list, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, p := clienttest.New(t), &typist{types: []string{wrong}}
			c, dir := levelClient(t, a, p)
			address := a.Listen("tcp")
			r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), level(2), says(protocol.Approve))
			var retry *RetryError
			if !errors.As(err, &retry) || retry.TriesLeft != 2 || !errors.Is(err, errNoMore) || r.Result != protocol.ResultRetry || *r.TriesLeft != 2 {
				t.Fatalf("%+v, %v", r, err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			c = openClient(t, Config{Dir: dir, Passwords: p, Verifier: p})
			if r, ok := c.Pending(); !ok || r.Result != protocol.ResultRetry {
				t.Errorf("pending %+v, %v", r, ok)
			}
			next(t, c, p, address)
			if c.state.Session != nil {
				t.Error("session was not erased")
			}
		})
	}
}

// TestSecondM3IsRepeated loses the answer to the second attempt.
func TestSecondM3IsRepeated(t *testing.T) {
	a, p := clienttest.New(t), &typist{types: []string{wrong, right}}
	c, _ := levelClient(t, a, p)
	address := a.Listen("tcp")
	m4 := 0
	var m3 [][]byte
	a.Do(clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if !toClient && m[0] == 0x31 {
			m3 = append(m3, bytes.Clone(m))
		}
		if toClient && m[0] == 0x41 {
			if m4++; m4 == 2 {
				return nil
			}
		}
		return m
	}})
	if _, err := c.Authorize(t.Context(), clienttest.Dial(t, address), level(2), says(protocol.Approve)); !errors.Is(err, ErrUnknownOutcome) {
		t.Fatal(err)
	}
	if r, err := c.Resume(t.Context(), clienttest.Dial(t, address)); err != nil || !r.Approved() {
		t.Fatalf("%+v, %v", r, err)
	}
	if len(m3) != 3 || m3[0][1] != 0 || m3[1][1] != 1 || !bytes.Equal(m3[1], m3[2]) || len(m3[1]) != 106 {
		t.Errorf("M3 %x", m3)
	}
}

func TestLocked(t *testing.T) {
	a, p := clienttest.New(t), &typist{types: []string{right, right}}
	c, _ := levelClient(t, a, p)
	link := clienttest.Dial(t, a.Listen("tcp"))
	ninety := uint64(90)
	a.Do(clienttest.Behaviour{Deny: protocol.CodeLocked, DenyRetry: &ninety})
	r, err := c.Authorize(t.Context(), link, level(2), says(protocol.Approve))
	if err != nil || r.Approved() || r.Reason != protocol.CodeLocked || r.Retry != 90*time.Second {
		t.Errorf("%+v, %v", r, err)
	}
}
