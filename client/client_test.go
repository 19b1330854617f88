package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/softhsm-test/clienttest"
)

// approverFunc is an Approver in one function.
type approverFunc func(context.Context, Shown) (protocol.Verdict, error)

func (f approverFunc) Decide(ctx context.Context, s Shown) (protocol.Verdict, error) {
	return f(ctx, s)
}

func says(v protocol.Verdict) Approver {
	return approverFunc(func(context.Context, Shown) (protocol.Verdict, error) { return v, nil })
}

// nobody is an Approver that fails the test when asked.
func nobody(t *testing.T) Approver {
	return approverFunc(func(_ context.Context, s Shown) (protocol.Verdict, error) {
		t.Errorf("the user was asked: %+v", s)
		return protocol.Refuse, nil
	})
}

func openClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// enrolledClient returns a client of the appliance and its directory.
func enrolledClient(t *testing.T, a *clienttest.Appliance) (c *Client, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "state")
	c = openClient(t, Config{Dir: dir, AnswerTimeout: 10 * time.Second})
	if _, err := c.Enrol(t.Context(), EnrolConfig{URL: a.Serve(), Code: a.Invite()}); err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func reopen(t *testing.T, c *Client, dir string) *Client {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return openClient(t, Config{Dir: dir})
}

func door() Request { return Request{Service: 100} }

func TestEnrol(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	before, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(before.URL, "https://127.0.0.1:") || before.RootNumber != 1 || before.KEMEpoch != 1 || before.Counter != 0 {
		t.Errorf("status %+v", before)
	}
	if len(before.Floors) != 1 || before.Floors[0] != (protocol.Floor{Service: 300, MinLevel: 3}) {
		t.Errorf("floors %v", before.Floors)
	}
	if _, err := c.Enrol(t.Context(), EnrolConfig{URL: before.URL, Code: a.Invite()}); !errors.Is(err, ErrEnrolled) {
		t.Errorf("second enrolment: %v", err)
	}
	after, err := reopen(t, c, dir).Status()
	if err != nil || after.Client != before.Client || !after.EnrolledAt.Equal(before.EnrolledAt) {
		t.Errorf("after reopening: %+v, %v", after, err)
	}
	if a.Clients() != 1 {
		t.Errorf("%d clients are enrolled", a.Clients())
	}
}

func TestEnrolRefuses(t *testing.T) {
	other := clienttest.New(t)
	for name, tc := range map[string]struct {
		do   clienttest.Behaviour
		code func(a *clienttest.Appliance) enrol.ActivationCode
		want protocol.Code
	}{
		"code of another root":       {code: func(*clienttest.Appliance) enrol.ActivationCode { return other.Invite() }, want: protocol.CodeCertificate},
		"TLS certificate of another": {do: clienttest.Behaviour{OtherCA: true}, want: protocol.CodeCertificate},
		"answered with another root": {do: clienttest.Behaviour{OtherRoot: true}, want: protocol.CodeCertificate},
		"code that nobody has made": {code: func(a *clienttest.Appliance) enrol.ActivationCode {
			return enrol.NewActivationCode(a.Root(), [13]byte{1})
		}, want: protocol.CodeRefused},
		"appliance that is not there":  {want: protocol.CodeServerUnreachable},
		"address that is not of HTTPS": {want: protocol.CodeFormat},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			a.Do(tc.do)
			url := a.Serve()
			switch tc.want {
			case protocol.CodeServerUnreachable:
				url = "https://127.0.0.1:1"
			case protocol.CodeFormat:
				url = "http://127.0.0.1:1"
			}
			code := a.Invite()
			if tc.code != nil {
				code = tc.code(a)
			}
			c := openClient(t, Config{Dir: t.TempDir()})
			_, err := c.Enrol(t.Context(), EnrolConfig{URL: url, Code: code})
			if got, _ := protocol.CodeOf(err); got != tc.want {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			if _, err := c.Status(); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("status: %v", err)
			}
			if tc.want != protocol.CodeRefused && !tc.do.OtherRoot && (a.Clients() != 0 || c.state.Enrolling != nil) {
				t.Errorf("a request was made: %d clients, %v", a.Clients(), c.state.Enrolling)
			}
		})
	}
}

func TestEnrolMakesAnotherKeyOnConflict(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Conflict: 1})
	_, dir := enrolledClient(t, a)
	if keys, err := filepath.Glob(filepath.Join(dir, "key-*.pem")); err != nil || len(keys) != 1 {
		t.Errorf("keys %v, %v: want one, the first is deleted", keys, err)
	}
	a.Do(clienttest.Behaviour{Conflict: 2})
	c := openClient(t, Config{Dir: t.TempDir()})
	_, err := c.Enrol(t.Context(), EnrolConfig{URL: a.Serve(), Code: a.Invite()})
	var refused *ServerError
	if !errors.As(err, &refused) || refused.Status != 409 {
		t.Errorf("two conflicts: %v", err)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	member := func(path ...string) func(map[string]any) {
		return func(m map[string]any) {
			for _, p := range path[:len(path)-2] {
				m = m[p].(map[string]any)
			}
			m[path[len(path)-2]] = path[len(path)-1]
		}
	}
	for name, change := range map[string]func(map[string]any){
		"version":        func(m map[string]any) { m["version"] = 2 },
		"unknown member": member("colour", "red"),
		"no trust":       func(m map[string]any) { delete(m, "trust") },
		"another root":   member("trust", "root_key", a.Invite().String()),
		"signing key":    member("enrolment", "signing_key", "AAAA"),
		"session":        func(m map[string]any) { m["session"] = map[string]any{"p1": "AAAA"} },
		"enrolling":      func(m map[string]any) { m["enrolling"] = map[string]any{"body": "AAAA"} },
	} {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		bad, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, bad)
		if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
	for name, bad := range map[string][]byte{"cut short": good[:len(good)/2], "more behind": append(bytes.Clone(good), '{'), "empty": nil} {
		write(t, file, bad)
		if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v, want ErrState", name, err)
		}
	}
	write(t, file, good)
	keys, err := filepath.Glob(filepath.Join(dir, "key-*.pem"))
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	write(t, keys[0], []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrState) {
		t.Errorf("damaged key: %v", err)
	}
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLockedAndReadOnly(t *testing.T) {
	a := clienttest.New(t)
	c, dir := enrolledClient(t, a)
	if _, err := Open(t.Context(), Config{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second Open: %v", err)
	}
	viewer := openClient(t, Config{Dir: dir, ReadOnly: true})
	if s, err := viewer.Status(); err != nil || s.Client != c.state.Enrolment.client() {
		t.Errorf("viewer: %+v, %v", s, err)
	}
	if err := viewer.SetName(100, "door"); err == nil {
		t.Error("a viewer has changed the state")
	}
}

func TestNames(t *testing.T) {
	c := openClient(t, Config{Dir: t.TempDir()})
	for _, set := range []struct {
		service protocol.Service
		name    string
	}{{100, "door.open"}, {200, "payment"}, {101, "door.open"}} {
		if err := c.SetName(set.service, set.name); err != nil {
			t.Fatal(err)
		}
	}
	if c.Name(100) != "service 100" || c.Name(101) != "door.open" || c.Name(200) != "payment" {
		t.Errorf("names %v", c.state.Names)
	}
	if s, ok := c.ServiceNamed("door.open"); !ok || s != 101 {
		t.Errorf("door.open is %v, %v", s, ok)
	}
	if err := c.SetName(1, "a\nb"); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("name of two lines: %v", err)
	}
}

func verifies(c *Client, r Receipt) bool {
	_, err := c.checkDecision(r)
	return err == nil
}
