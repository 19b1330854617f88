package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/client"
	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/softhsm-test/clienttest"
)

// shell runs the command with one state directory.
type shell struct {
	t     *testing.T
	state string
	stdin io.Reader
}

func (s shell) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	code = run(append([]string{"--state", s.state}, args...), s.stdin, &out, &errs)
	return code, out.String(), errs.String()
}

// want runs the command and checks the exit code.
func (s shell) want(code int, args ...string) (stdout, stderr string) {
	s.t.Helper()
	got, stdout, stderr := s.run(args...)
	if got != code {
		s.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

func enrolledShell(t *testing.T, a *clienttest.Appliance) shell {
	t.Helper()
	s := shell{t: t, state: filepath.Join(t.TempDir(), "state"), stdin: strings.NewReader("")}
	s.want(0, "enrol", "--url", a.Serve(), a.Invite().String())
	return s
}

func decode(t *testing.T, doc string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatalf("%v in %q", err, doc)
	}
	return m
}

func TestEnrolAndStatus(t *testing.T) {
	a := clienttest.New(t)
	url, code := a.Serve(), a.Invite().String()
	s := shell{t: t, state: filepath.Join(t.TempDir(), "state"), stdin: strings.NewReader(code + "\n")}
	if _, stderr := s.want(5, "status"); !strings.Contains(stderr, "not enrolled") || !strings.Contains(stderr, "hint:") {
		t.Errorf("status says %q", stderr)
	}
	stdout, _ := s.want(0, "enrol", "--url", url, "-", "-o", "json")
	made := decode(t, stdout)
	if made["url"] != url || made["kem_epoch"] != 1.0 || len(made["client_id"].(string)) != 16 {
		t.Errorf("enrol prints %s", stdout)
	}
	stdout, _ = s.want(0, "status", "-o", "json")
	if got := decode(t, stdout); got["client_id"] != made["client_id"] || got["pending"] != nil {
		t.Errorf("status prints %s", stdout)
	}
	s.want(1, "enrol", "--url", url, a.Invite().String())
	if stdout, _ := s.want(0, "receipts", "-o", "json"); stdout != "[]\n" {
		t.Errorf("receipts prints %q", stdout)
	}
}

func TestEnrolExitCodes(t *testing.T) {
	a := clienttest.New(t)
	s := shell{t: t, state: t.TempDir(), stdin: strings.NewReader("")}
	url, code := a.Serve(), a.Invite().String()
	s.want(2, "enrol", "--url", url)
	s.want(2, "enrol", "--url", url, "OA1-WRONG")
	s.want(2, "enrol", "--url", "http://127.0.0.1:1", code)
	s.want(69, "enrol", "--url", "https://127.0.0.1:1", code)
	s.want(4, "enrol", "--url", clienttest.New(t).Serve(), code)
	_, stderr := s.want(77, "enrol", "--url", url, enrol.NewActivationCode(a.Root(), [13]byte{}).String())
	if !strings.Contains(stderr, "ask for another code: countersignctl client invite") {
		t.Errorf("a refused code: %s", stderr)
	}
	s.want(0, "enrol", "--url", url, code)
}

// TestHintNamesTheClock enrols at an appliance whose keys are valid in another year.
func TestHintNamesTheClock(t *testing.T) {
	for _, years := range []int{-1, 1} {
		a := clienttest.NewDated(t, time.Now().AddDate(years, 0, 0))
		s := shell{t: t, state: t.TempDir(), stdin: strings.NewReader("")}
		_, stderr := s.want(4, "enrol", "--url", a.Serve(), a.Invite().String())
		if !strings.Contains(stderr, "the clock here shows "+time.Now().UTC().Format(time.DateOnly)) ||
			!strings.Contains(stderr, "hint: check the date and time of this machine") {
			t.Errorf("%d years off: %s", years, stderr)
		}
	}
}

func TestAuthorizeShowsAndReports(t *testing.T) {
	a := clienttest.New(t)
	s := enrolledShell(t, a)
	link := a.Listen("tcp")
	stdout, stderr := s.want(0, "authorize", "--link", link, "--service", "payment=200", "--amount", "12.00", "--currency", "EUR",
		"--text", "Ticket 7", "--yes", "-o", "json")
	for _, line := range []string{
		"service:  payment\n", "amount:   12.00 EUR\n", `device:   "Main entrance" (` + a.Device().String() + ")\n",
		`the device says: "Ticket 7"` + "\n", "level:    1\n",
	} {
		if !strings.Contains(stderr, line) {
			t.Errorf("%q is not shown: %s", line, stderr)
		}
	}
	got := decode(t, stdout)
	for key, want := range map[string]any{
		"result": "approved", "code": 0.0, "device": a.Device().String(), "level": 1.0, "service": 200.0, "amount": "12.00 EUR",
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if !regexp.MustCompile(`^00000001[0-9a-f]{16}$`).MatchString(fmt.Sprint(got["serial"])) {
		t.Errorf("serial %v", got["serial"])
	}
	stdout, _ = s.want(0, "receipts")
	if !strings.Contains(stdout, "approved") || !strings.Contains(stdout, "payment") {
		t.Errorf("receipts: %s", stdout)
	}
}

func TestAuthorizeAsks(t *testing.T) {
	a := clienttest.New(t)
	s := enrolledShell(t, a)
	link := a.Listen("unix")
	for answer, code := range map[string]int{"y\n": 0, "yes\n": 0, "n\n": 3, "\n": 3, "maybe\n": 3, "": 2} {
		s.stdin = strings.NewReader(answer)
		if _, stderr := s.want(code, "authorize", "--link", link, "--service", "100"); !strings.Contains(stderr, "approve? [y/N]") {
			t.Errorf("nobody was asked: %s", stderr)
		}
	}
	if acts := len(a.Acts()); acts != 2 {
		t.Errorf("%d acts, want 2", acts)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(r.Close(), w.Close()) }()
	s.stdin = r
	before := a.Highest()
	if _, stderr := s.want(2, "authorize", "--link", link, "--service", "100"); !strings.Contains(stderr, "--yes") {
		t.Errorf("hint: %s", stderr)
	}
	if a.Highest() != before {
		t.Error("a request was made though nobody can be asked")
	}
}

func TestAuthorizeExitCodes(t *testing.T) {
	a := clienttest.New(t)
	s, link := enrolledShell(t, a), a.Listen("tcp")
	door := []string{"authorize", "--link", link, "--service", "100", "--yes", "-o", "json"}
	answer := func(kind byte, change func([]byte) []byte) clienttest.Behaviour {
		return clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
			if toClient && m[0] == kind {
				return change(m)
			}
			return m
		}}
	}
	me := func(code protocol.Code) func([]byte) []byte {
		return func([]byte) []byte { return message.LinkError{Code: code}.Marshal() }
	}
	flip := func(m []byte) []byte { m[len(m)-1] ^= 1; return m }
	for name, tc := range map[string]struct {
		do     clienttest.Behaviour
		exit   int
		result string
		code   protocol.Code
	}{
		"approved":           {exit: 0, result: "approved"},
		"denied":             {do: clienttest.Behaviour{Deny: protocol.CodeLimit}, exit: 3, result: "denied", code: protocol.CodeLimit},
		"suspended":          {do: clienttest.Behaviour{Deny: protocol.CodeSuspended}, exit: 3, result: "denied", code: protocol.CodeSuspended},
		"bad signature":      {do: clienttest.Behaviour{Deny: protocol.CodeSignature}, exit: 4, result: "denied", code: protocol.CodeSignature},
		"expired":            {do: clienttest.Behaviour{Deny: protocol.CodeExpired}, exit: 75, result: "denied", code: protocol.CodeExpired},
		"refused in P2":      {do: clienttest.Behaviour{P2: message.P2{Code: protocol.CodeService}}, exit: 3, result: "denied", code: protocol.CodeService},
		"too high a level":   {do: clienttest.Behaviour{P2: message.P2{Level: 2}}, exit: 3},
		"M2 altered":         {do: answer(0x21, flip), exit: 4},
		"HSM unavailable":    {do: answer(0x21, me(protocol.CodeHSM)), exit: 69},
		"server unreachable": {do: answer(0x21, me(protocol.CodeServerUnreachable)), exit: 69},
		"link busy":          {do: answer(0x21, me(protocol.CodeLinkBusy)), exit: 75},
		"no order":           {do: answer(0x21, me(protocol.CodeNothingToApprove)), exit: 75},
		"amount differs":     {do: clienttest.Behaviour{P2: message.P2{Code: protocol.CodeAmountDiffers}}, exit: 3, result: "denied", code: protocol.CodeAmountDiffers},
		"own approval":       {do: clienttest.Behaviour{Deny: protocol.CodeOwnApproval}, exit: 3, result: "denied", code: protocol.CodeOwnApproval},
		"a code of later":    {do: clienttest.Behaviour{P2: message.P2{Code: 99}}, exit: 3, result: "denied", code: 99},
		"device not allowed": {do: answer(0x21, me(protocol.CodeDevice)), exit: 3},
		"cut":                {do: answer(0x21, func([]byte) []byte { return nil }), exit: 69},
		"wrong password":     {do: clienttest.Behaviour{Result: protocol.ResultRetry}, exit: 75, result: "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			s := shell{t: t, state: s.state, stdin: s.stdin}
			a.Do(tc.do)
			stdout, stderr := s.want(tc.exit, door...)
			if tc.exit != 0 && !strings.Contains(stderr, "error: ") {
				t.Errorf("no error is told: %q", stderr)
			}
			if tc.result == "" {
				if stdout != "" {
					t.Errorf("prints %s", stdout)
				}
				return
			}
			if got := decode(t, stdout); tc.result != "unknown" && (got["result"] != tc.result || got["code"] != float64(tc.code)) {
				t.Errorf("prints %s", stdout)
			}
		})
	}
	a.Do(clienttest.Behaviour{})
	if _, stderr := s.want(69, "authorize", "--link", "tcp:127.0.0.1:1", "--service", "100", "--yes"); !strings.Contains(stderr, "cannot reach the device") {
		t.Errorf("no device: %s", stderr)
	}
	s.want(3, "authorize", "--link", link, "--service", "100", "--refuse")
}

func TestUsage(t *testing.T) {
	a := clienttest.New(t)
	s := enrolledShell(t, a)
	link := a.Listen("tcp")
	for _, args := range [][]string{
		{},
		{"authorise"},
		{"authorize", "--service", "100", "--yes"},
		{"authorize", "--link", link, "--yes"},
		{"authorize", "--link", "127.0.0.1:1", "--service", "100", "--yes"},
		{"authorize", "--link", link, "--service", "100", "--yes", "--refuse"},
		{"authorize", "--link", link, "--service", "door", "--yes"},
		{"authorize", "--link", link, "--service", "=100", "--yes"},
		{"authorize", "--link", link, "--service", "2", "--yes"},
		{"authorize", "--link", link, "--service", "100", "--level", "5", "--yes"},
		{"authorize", "--link", link, "--service", "100", "--amount", "12.0 EUR", "--yes"},
		{"authorize", "--link", link, "--service", "100", "--currency", "EUR", "--yes"},
		{"authorize", "--link", link, "--service", "100", "--text", strings.Repeat("x", 45), "--yes"},
		{"resume"},
		{"resume", "--link", "nowhere"},
		{"receipts", "extra"},
		{"status", "-o", "xml"},
	} {
		if _, stderr := s.want(2, args...); !strings.Contains(stderr, "hint: ") {
			t.Errorf("%v: no hint: %s", args, stderr)
		}
	}
	if a.Highest() != 0 {
		t.Error("a wrong command line made a request")
	}
}

func TestResumeAndSettle(t *testing.T) {
	a := clienttest.New(t)
	s := enrolledShell(t, a)
	link := a.Listen("tcp")
	cut := clienttest.Behaviour{Tamper: func(toClient bool, m []byte) []byte {
		if toClient && m[0] == 0x41 {
			return nil
		}
		return m
	}}
	authorize := []string{"authorize", "--link", link, "--service", "door.open=100", "--yes", "-o", "json"}
	s.want(5, "resume", "--link", link)

	a.Do(cut)
	stdout, stderr := s.want(75, authorize...)
	if decode(t, stdout)["result"] != "unknown" || !strings.Contains(stderr, "resume") {
		t.Errorf("prints %s%s", stdout, stderr)
	}
	if stdout, _ = s.want(0, "status"); !strings.Contains(stdout, "resume it") {
		t.Errorf("status: %s", stdout)
	}
	a.Do(clienttest.Behaviour{})
	if stdout, _ = s.want(0, "resume", "--link", link, "-o", "json"); decode(t, stdout)["result"] != "approved" {
		t.Errorf("resume prints %s", stdout)
	}

	a.Do(cut)
	s.want(75, authorize...)
	if _, stderr = s.want(75, authorize...); !strings.Contains(stderr, "settling") {
		t.Errorf("still cut: %s", stderr)
	}
	a.Do(clienttest.Behaviour{})
	s.stdin = strings.NewReader("n\n")
	_, stderr = s.want(3, "authorize", "--link", link, "--service", "door.open")
	if !strings.Contains(stderr, "(door.open)\nit was approved\n") {
		t.Errorf("settled: %s", stderr)
	}
	if acts := slices.Sorted(maps.Keys(a.Acts())); !slices.Equal(acts, []uint32{1, 2}) {
		t.Errorf("acts of counters %v", acts)
	}
}

// TestStatusPerformed: an approval on which the device did not act says so.
func TestStatusPerformed(t *testing.T) {
	a := clienttest.New(t)
	s := enrolledShell(t, a)
	link := a.Listen("tcp")
	s.want(0, "authorize", "--link", link, "--service", "door.open=100", "--yes")
	if stdout, _ := s.want(0, "status", "--last"); strings.Contains(stdout, "performed") {
		t.Errorf("before anybody asked: %s", stdout)
	}
	a.Do(clienttest.Behaviour{Performed: new(bool)})
	stdout, _ := s.want(0, "status", "--last", "--link", link, "-o", "json")
	if out := decode(t, stdout); out["result"] != "approved" || out["performed"] != false {
		t.Errorf("status prints %s", stdout)
	}
	if stdout, _ = s.want(0, "status", "--last"); !strings.Contains(stdout, "act:      not performed") {
		t.Errorf("kept: %s", stdout)
	}
}

func TestAmounts(t *testing.T) {
	for _, tc := range []struct {
		amount, currency string
		minor            uint64
		back             string
	}{
		{"12.00 EUR", "", 1200, "12.00 EUR"},
		{"12.00", "EUR", 1200, "12.00 EUR"},
		{"12", "EUR", 1200, "12.00 EUR"},
		{"0.05 EUR", "", 5, "0.05 EUR"},
		{"1500 JPY", "", 1500, "1500 JPY"},
		{"1.234 KWD", "", 1234, "1.234 KWD"},
		{"9999999999999.99 EUR", "", 999_999_999_999_999, "9999999999999.99 EUR"},
	} {
		a, err := parseAmount(tc.amount, tc.currency)
		if err != nil || a.Minor != tc.minor || formatAmount(a) != tc.back {
			t.Errorf("%s %s: %v, %v, back %q", tc.amount, tc.currency, a, err, formatAmount(a))
		}
	}
	for _, bad := range []string{
		"12.00", "12.0 EUR", "12,00 EUR", "-1 EUR", "+1 EUR", "1e3 EUR", ".50 EUR", "1. EUR", " EUR", "12 eur", "12 XXX", "1.0 JPY",
		"10000000000000.00 EUR", "99999999999999999999 EUR", "12  EUR",
	} {
		if a, err := parseAmount(bad, ""); err == nil {
			t.Errorf("%q is %v", bad, a)
		}
	}
	if a, err := parseAmount("12 EUR", "USD"); err == nil {
		t.Errorf("two currencies: %v", a)
	}
}

// TestExitCodes requires a row for every code of the protocol, so that a new one is not forgotten, and the texts of the
// errors in the rows.
func TestExitCodes(t *testing.T) {
	for _, code := range protocol.Codes() {
		if row, ok := results[code]; !ok || row.Text != code.String() {
			t.Errorf("code %d (%v) has the row %q", code, code, row.Text)
		}
	}
	for _, s := range sentinels {
		if !strings.Contains(s.Err.Error(), s.Row.Text) {
			t.Errorf("the row %q describes the error %q", s.Row.Text, s.Err)
		}
	}
	err := explain(fmt.Errorf("x: %w", &client.UnknownOutcomeError{Cause: client.ErrNotAuthentic}))
	var e *fault.Error
	if !errors.As(err, &e) || e.Code != fault.TryAgain {
		t.Errorf("unknown outcome: %v", err)
	}
}

func TestDefaultState(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"/data/countersign-client":                {"XDG_DATA_HOME": "/data", "HOME": "/home/u"},
		"/home/u/.local/share/countersign-client": {"XDG_DATA_HOME": "relative", "HOME": "/home/u"},
		"": {},
	} {
		if got := defaultState(func(key string) string { return env[key] }); got != want {
			t.Errorf("%v: %q, want %q", env, got, want)
		}
	}
}
