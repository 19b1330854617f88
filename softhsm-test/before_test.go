package softhsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance"
	"countersign/appliance/anchor"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/sqlite"
	"countersign/client"
	"countersign/policy"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
)

// fixtureTime is a moment shortly after testdata/before.tar.gz was written, while its
// certificates are valid.
var fixtureTime = time.Date(2026, 11, 29, 22, 50, 0, 0, time.UTC)

// TestBefore opens the database, the SoftHSM token and the phones of a `countersignd dev` directory
// that the release before the packages were split wrote, and authorizes with them. In the fixture,
// kem and mac were rotated, carl was suspended, ann was added as an administrator, and an
// invitation of a device waits for her signature.
func TestBefore(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-xzf", "testdata/before.tar.gz", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := "directories.tokendir = " + filepath.Join(dir, "dev", "token") + "\nobjectstore.backend = file\nlog.level = ERROR\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf) // for hsm-worker
	b := openBefore(t, filepath.Join(dir, "dev"))
	b.check(t)

	door := client.Request{Service: 100}
	receipt, err := b.authorize(t, filepath.Join(dir, "phones", "alice"), door)
	if err != nil || receipt.Result != protocol.ResultApproved {
		t.Errorf("level 1: %+v, %v", receipt, err)
	}
	payment := client.Request{Service: 200, Amount: &protocol.Amount{Minor: 6000, Currency: "EUR"}}
	receipt, err = b.authorize(t, filepath.Join(dir, "phones", "alice"), payment)
	if err != nil || receipt.Result != protocol.ResultApproved {
		t.Errorf("level 2, with the password: %+v, %v", receipt, err)
	}
	receipt, err = b.authorize(t, filepath.Join(dir, "phones", "carl"), door)
	if err != nil || receipt.Result != protocol.ResultDenied {
		t.Errorf("carl, who is suspended: %+v, %v", receipt, err)
	}
}

// before is an appliance on the fixture's database and token.
type before struct {
	*appliance.Appliance
	gate store.Device
	now  func() time.Time
}

func openBefore(t *testing.T, dir string) *before {
	ctx := t.Context()
	token, err := openToken(ctx, "countersign-dev", filepath.Join(dir, "pin"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(token.Close)
	file, err := anchor.Open(filepath.Join(dir, "anchor"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(dir, "countersign.db"), Existing: true, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	seals, pins := store.NewSeals(nil), keyuse.Pins{Anchor: file}
	if err := keyuse.Unseal(ctx, token, s, seals, pins); err != nil {
		t.Fatalf("unsealing the database: %v", err)
	}
	keys, err := keyuse.Load(ctx, token, s, pins)
	if err == nil {
		err = keys.Keep(ctx, seals)
	}
	if err != nil {
		t.Fatalf("loading the keys: %v", err)
	}
	if err := s.Upgrade(ctx, audit.NewRecord(audit.KindStore, "store", nil)); err != nil {
		t.Fatalf("upgrading the database: %v", err)
	}
	since := time.Since(fixtureTime)
	b := &before{now: func() time.Time { return time.Now().Add(-since) }}
	if b.Appliance, err = appliance.New(ctx, appliance.Config{Store: s, Keys: keys, Logger: hclog.NewNullLogger(), Now: b.now}); err != nil {
		t.Fatal(err)
	}
	if b.gate, err = b.Parties.DeviceNamed(ctx, "dev-relay"); err != nil {
		t.Fatal(err)
	}
	return b
}

// check compares the records of the fixture with its history.
func (b *before) check(t *testing.T) {
	ctx := t.Context()
	overview, err := b.Overview(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := overview.Tally; n.Clients != 3 || n.Devices != 1 || n.Decisions != 4 || n.Keys != 26 {
		t.Errorf("%+v", n)
	}
	carl, err := b.Parties.ClientNamed(ctx, "carl")
	if err != nil || carl.Status != store.Suspended {
		t.Errorf("carl: %s, %v", carl.Status, err)
	}
	open := 0
	all, err := b.Requests.List(ctx)
	for _, c := range all {
		if c.State == store.ChangeOpen && c.Kind.String() == "device.invite" && c.Required == 2 {
			open++
		}
	}
	if err != nil || open != 1 || len(all) != 4 {
		t.Errorf("%d change requests, %d open, %v", len(all), open, err)
	}
	admins, err := b.Quorum.Admins(ctx)
	if err != nil || len(admins) != 1 || admins[0].Name != "ann" {
		t.Errorf("administrators %+v, %v", admins, err)
	}
}

// authorize runs an authorization with the phone in dir.
func (b *before) authorize(t *testing.T, dir string, r client.Request) (client.Receipt, error) {
	c, err := client.Open(t.Context(), client.Config{Dir: dir, Passwords: fixturePassword{}, Now: b.now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.Authorize(t.Context(), &direct{b: b, ctx: t.Context(), service: r}, r, always{})
}

type fixturePassword struct{}

func (fixturePassword) Password(context.Context, client.PasswordAsk) (client.Password, error) {
	return client.Password("correct horse 42"), nil
}

type always struct{}

func (always) Decide(context.Context, client.Shown) (protocol.Verdict, error) {
	return protocol.Approve, nil
}

// direct is a link to the appliance without a network: a device that offers what the phone asks for.
type direct struct {
	b       *before
	ctx     context.Context
	service client.Request
	handle  []byte
	answer  []byte
}

// Send hands a message of the phone to the appliance.
func (d *direct) Send(msg []byte) error {
	switch msg[0] >> 4 {
	case message.KindM1:
		var nonce protocol.Nonce
		_, _ = rand.Read(nonce[:])
		res, err := d.b.Authorize.Apply(d.ctx, d.b.gate, deviceapi.ApplyRequest{
			M1: msg, Nonce: nonce, Link: deviceapi.LinkWire,
			Order: deviceapi.Order{Services: []protocol.Service{d.service.Service}, Amount: d.service.Amount},
		})
		d.handle, d.answer = res.Handle, res.M2
		return err
	default:
		res, err := d.b.Authorize.Countersign(d.ctx, d.b.gate, deviceapi.CountersignRequest{Handle: d.handle, M3: msg})
		d.answer = res.M4
		return err
	}
}

// Receive returns the answer to the last message.
func (d *direct) Receive() ([]byte, error) {
	if d.answer == nil {
		return nil, errors.New("no answer")
	}
	msg := d.answer
	d.answer = nil
	return msg, nil
}

// TestForward goes from the programs in COUNTERSIGN_BEFORE, of an earlier release, to those of today on
// one directory of appliance, device and phone: `make before-test`. There is no way back: the earlier
// ones refuse the database that today's have upgraded, and change nothing.
func TestForward(t *testing.T) {
	old := harness.Bin(os.Getenv("COUNTERSIGN_BEFORE"))
	if old == "" {
		t.Skip("COUNTERSIGN_BEFORE names no programs of an earlier release; make before-test builds them")
	}
	harness.Run(t, func(r *harness.Report) {
		f := forward{Report: r, old: old, dir: harness.TempDir(t)}
		f.password = filepath.Join(f.dir, "password")
		harness.Do(os.WriteFile(f.password, []byte("correct horse 42\n"), 0o600))
		f.lives(old)
		f.lives(programs)
		f.refuses()
		f.lives(programs)
	})
}

// forward is one appliance that two releases run, one after the other.
type forward struct {
	*harness.Report
	old           harness.Bin
	dir, password string
	runs          int
	decisions     uint64
	records       uint64
}

// lives runs the appliance: authorizations by the phone, and rotations.
func (f *forward) lives(bin harness.Bin) {
	ctx, name := f.Context(), map[harness.Bin]string{f.old: "before", programs: "today"}[bin]
	a := harness.Must(harness.Start(ctx, harness.Config{Bin: bin, Dir: filepath.Join(f.dir, "dev")}))
	if f.runs == 0 {
		code := harness.Must(a.Invite(ctx, "client", "alice"))
		p := a.Phone(ctx, filepath.Join(f.dir, "alice"), "enrol", "--uv", "--url", a.URL, "--password-file", f.password, code)
		f.Check(p.Code == 0, "enrol: %d, %s", p.Code, p.Stderr)
	}
	f.runs++
	f.authorizes(a, 0, "--service", "100")
	f.authorizes(a, 0, "--service", "200", "--amount", "60.00 EUR", "--password-file", f.password)
	if bin == programs {
		f.sumOfBefore(a)
	}
	for _, key := range []string{"kem", "mac", "decision"} {
		a.MustCtl(ctx, "key", "rotate", key)
		a.MustCtl(ctx, "key", "activate", key)
	}
	status := harness.Must(a.Status(ctx))
	f.Check(status.Counts.Decisions == f.decisions, "run %d, %s: %d decisions, want %d", f.runs, name, status.Counts.Decisions, f.decisions)
	f.Check(status.Counts.Records > f.records, "run %d, %s: %d audit records after %d", f.runs, name, status.Counts.Records, f.records)
	f.records = status.Counts.Records
	_, err := a.Stop()
	f.Check(err == nil, "run %d, %s: stop: %v", f.runs, name, err)
}

// authorizes has the phone authorize, and end with an exit code.
func (f *forward) authorizes(a *harness.Appliance, code int, args ...string) {
	p := a.Phone(f.Context(), filepath.Join(f.dir, "alice"), append([]string{"authorize", "--link", a.Link, "--yes"}, args...)...)
	f.Check(p.Code == code, "run %d: authorize %s: %d, want %d: %s", f.runs, strings.Join(args, " "), p.Code, code, p.Stderr)
	if p.Code == 0 {
		f.decisions++
	}
}

// sumOfBefore applies a policy with levels by cumulated amount: the payments that the earlier
// programs approved count.
func (f *forward) sumOfBefore(a *harness.Appliance) {
	file := filepath.Join(f.dir, "policy.toml")
	harness.Do(os.WriteFile(file, append(policy.Default(), fmt.Sprintf("# run %d\n", f.runs)...), 0o600))
	a.MustCtl(f.Context(), "policy", "apply", file)
	payment := []string{"--service", "200", "--amount", "40.00 EUR"} // 160.00 with two of 60.00
	f.authorizes(a, 77, payment...)
	f.authorizes(a, 0, append(payment, "--password-file", f.password)...)
}

// refuses starts the earlier programs, which must not count by windows of their own.
func (f *forward) refuses() {
	_, err := harness.Start(f.Context(), harness.Config{Bin: f.old, Dir: filepath.Join(f.dir, "dev")})
	f.Check(err != nil && strings.Contains(err.Error(), "run a newer release"), "the programs of before start on an upgraded database: %v", err)
}
