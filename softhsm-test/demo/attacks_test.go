package demo

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	_ "modernc.org/sqlite" // the driver of the store that BREAK=replay puts back

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

// alteredBit alters M1 to M4, one after the other.
func (s *stage) alteredBit(ctx context.Context) {
	for _, step := range []struct {
		name string
		kind byte
		exit int
		then bool // the phone asks again
	}{
		{"M1: the appliance cannot open it", message.KindM1, failed, false},
		{"M2: the phone cannot open it, and signs nothing", message.KindM2, notAuthentic, false},
		{"M3: the appliance cannot open it; the phone sends it again", message.KindM3, unknown, true},
		{"M4: the door is open, and the phone asks what became of it", message.KindM4, unknown, true},
	} {
		s.Say("   %s", step.name)
		if harness.Break() == "bit" && step.kind == message.KindM2 {
			s.Say("   (BREAK=bit: the phone is given the challenge as if nothing had been altered)")
		} else {
			s.wire.Next(link.Rule{Kind: step.kind, Action: link.Alter, Bit: -1})
		}
		s.authorize(ctx, "alice", step.exit, "100")
		if !step.then {
			continue
		}
		s.resume(ctx)
	}
}

func (s *stage) resume(ctx context.Context) {
	a := s.client(ctx, "alice", approved, "resume", "--link", s.wire.Link())
	s.demand(a.Result == "approved", "result %q", a.Result)
}

// replay loses M4, lets the phone resume, and then plays the recording.
func (s *stage) replay(ctx context.Context) {
	s.keep(ctx)
	s.wire.Next(link.Rule{Kind: message.KindM4, Action: link.Cut})
	s.authorize(ctx, "alice", unknown, "100")
	lost := s.wire.Last(message.KindM4)
	s.resume(ctx)
	if harness.Break() == "replay" {
		s.Say("   (BREAK=replay: the appliance's database is put back to before the authorization)")
		s.putBack(ctx, `DELETE FROM decision WHERE ref = (SELECT max(ref) FROM decision)`)
	}
	m3 := s.wire.Last(message.KindM3)
	seen := [][]byte{lost, s.wire.Last(message.KindM4)}
	for range 3 {
		m4 := harness.Must(s.wire.Replay(ctx, m3))
		s.demand(len(m4) == len(lost) && m4[0] == lost[0], "the replay is answered by %x", m4)
		for _, earlier := range seen {
			s.demand(!bytes.Equal(m4, earlier), "an M4 came twice: %x", m4)
		}
		seen = append(seen, m4)
	}
	s.Say("   attacker: M3 played 3 times; each time an M4 of %d bytes, each sealed anew", len(lost))
}

// suspension suspends alice and resumes her.
func (s *stage) suspension(ctx context.Context) {
	if harness.Break() == "suspend" {
		s.Say("   (BREAK=suspend: the suspension is lost)")
	} else {
		s.ctl(ctx, "client", "suspend", "alice")
	}
	a := s.authorize(ctx, "alice", denied, "100")
	s.demand(a.Code == protocol.CodeSuspended, "code %d", uint8(a.Code))
	s.ctl(ctx, "client", "resume", "alice")
	s.authorize(ctx, "alice", approved, "100")
}

// sizes returns the lengths of the recorded messages, in order.
func (s *stage) sizes() (sizes []int) {
	for _, f := range s.wire.Frames() {
		sizes = append(sizes, len(f.Message))
	}
	return sizes
}

var euros12 = harness.Amount{Minor: 1200, Currency: "EUR"}

// stranger compares a phone that is not enrolled with bob, who refuses.
func (s *stage) stranger(ctx context.Context) {
	s.client(ctx, "bob", denied, "authorize", "--link", s.wire.Link(), "--service", "100", "--refuse")
	refused := s.sizes()
	s.wire.Reset()
	reason := s.stray(ctx)
	strayed := s.sizes()
	s.Say("   a phone that nobody enrolled: denied, code %d (%s)", uint8(reason), reason)
	s.Say("           refused by its user:  %v bytes", refused)
	s.Say("           enrolled by nobody:   %v bytes", strayed)
	s.demand(reason == protocol.CodeRefused, "code %d", uint8(reason))
	s.demand(slices.Equal(refused, strayed), "sizes differ")
}

// stray runs a whole authorization with a key that is not enrolled.
func (s *stage) stray(ctx context.Context) protocol.Code {
	pinned := s.trust(ctx)
	p := phone.Stranger(pinned)
	conn := harness.Must(link.Dial(ctx, s.wire.Link()))
	defer func() { _ = conn.Close() }() // both answers are there, or an error is returned
	p1 := p.Next(100)
	session := harness.Must(p.Apply(p1.Marshal()))
	m2 := harness.Must(conn.Ask(session.M1))
	harness.Do(session.Open(m2))
	m3 := harness.Must(session.Countersign(ctx, protocol.Approve))
	m4 := harness.Must(conn.Ask(m3))
	p4 := harness.Must(session.Result(m3, m4))
	s.demand(p4.Result == protocol.ResultDenied, "result %v", p4.Result)
	return p4.Reason
}

// trust is what an enrolled phone would have.
func (s *stage) trust(ctx context.Context) trust.State {
	status := harness.Must(s.Status(ctx))
	raw := harness.Must(hex.DecodeString(status.RootKey))
	root := harness.Must(protocol.ParsePublicKey(raw))
	return harness.Must(phone.FetchTrust(ctx, s.URL, root.RootHash()))
}

// keep keeps what restricts clients as it is now, with its seals, beside the database.
func (s *stage) keep(ctx context.Context) {
	if harness.Break() == "" {
		return
	}
	if err := os.Remove(s.kept()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		harness.Do(err)
		return
	}
	alter(ctx, s.database(), `ATTACH DATABASE '`+s.kept()+`' AS kept`, `CREATE TABLE kept.restraint AS SELECT * FROM restraint`)
}

// putBack breaks the product by what a seal cannot show: it puts back whole what keep
// has kept, as if an old copy had been restored. REPLACE fires no trigger.
func (s *stage) putBack(ctx context.Context, also ...string) {
	alter(ctx, s.database(), append(also,
		`ATTACH DATABASE '`+s.kept()+`' AS kept`, `INSERT OR REPLACE INTO restraint SELECT * FROM kept.restraint`)...)
}

func (s *stage) kept() string { return filepath.Join(s.dir, "kept.db") }

// alter writes to the database behind the appliance's back.
func alter(ctx context.Context, path string, statements ...string) {
	db := harness.Must(sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(2000)"}).String()))
	defer func() { _ = db.Close() }() // the writes are committed
	db.SetMaxOpenConns(1)             // an attached database belongs to one connection
	for _, statement := range statements {
		harness.Must(db.ExecContext(ctx, statement))
	}
}

func (s *stage) otherOrder(ctx context.Context) {
	cents := euros12.Minor
	if harness.Break() == "order" {
		s.Say("   (BREAK=order: the kiosk's order is for 9.00 EUR)")
		cents = 900
	}
	order := fmt.Sprintf("[order]\nsource = \"static\"\nstatic = { service = 200, amount_minor = %d, currency = \"EUR\", text = \"1 coffee\" }\n", cents)
	k := s.openMachine(ctx, harness.MachineConfig{Name: "kiosk", Tables: order})
	defer stop(k)
	for _, ask := range []struct {
		what string
		exit int
		code protocol.Code
		args []string
	}{
		{"Alice asks for a door; the kiosk has no such order:", denied, protocol.CodeService, []string{"100"}},
		{"She was told 9.00 EUR, the kiosk orders 12.00 EUR:", denied, protocol.CodeAmountDiffers, []string{"200", "--amount", "9.00 EUR"}},
		{"They agree:", approved, 0, []string{"200", "--amount", "12.00 EUR"}},
	} {
		s.Say("   %s", ask.what)
		a := s.client(ctx, "alice", ask.exit, append([]string{"authorize", "--link", k.Link, "--yes", "--service"}, ask.args...)...)
		s.demand(a.Code == ask.code, "code %d, wanted %d", uint8(a.Code), uint8(ask.code))
	}
	acts := harness.Must(harness.ReadActs(k.Hooklog))
	s.demand(len(acts) == 1 && acts[0].Amount != nil && *acts[0].Amount == euros12, "the kiosk's hook was told %+v", acts)
	s.liar(ctx)
}

// liar is a device that gets a true decision for 12.00 EUR and shows it to others.
func (s *stage) liar(ctx context.Context) {
	s.Say("   A device that lies gets Carla's 12.00 EUR approved, and shows the decision around:")
	code := harness.Must(s.Invite(ctx, "device", "liar"))
	d := harness.Must(device.Enrol(ctx, device.Config{URL: s.URL, CA: s.CA}, code))
	defer d.Close()
	check, decision := s.approvedAt(ctx, "carla", d)
	till, other, later := check, check, check
	till.Amount = &protocol.Amount{Minor: 4900, Currency: "EUR"}
	other.Device[0] ^= 1
	later.Nonce = device.NewNonce()
	for _, c := range []struct {
		what  string
		check receipt.Check
		code  protocol.Code
	}{
		{"for its own order", check, 0},
		{"for an order of 49.00 EUR", till, protocol.CodePolicy},
		{"at another device", other, protocol.CodeDevice},
		{"for its next customer", later, protocol.CodeReplayed},
	} {
		_, err := c.check.Verify(decision)
		got, _ := protocol.CodeOf(err)
		verdict := "taken"
		if err != nil {
			verdict = fmt.Sprintf("not acted on, code %d (%s)", uint8(got), got)
		}
		s.Say("           %-26s %s", c.what, verdict)
		s.demand((err == nil) == (c.code == 0) && got == c.code, "%s: %v, wanted code %d", c.what, err, uint8(c.code))
	}
}

// approvedAt runs an authorization of 12.00 EUR for a new phone at a device of the
// rig.
func (s *stage) approvedAt(ctx context.Context, name string, d *device.Device) (check receipt.Check, decision []byte) {
	order := deviceapi.Order{Services: []protocol.Service{200}, Amount: &protocol.Amount{Minor: euros12.Minor, Currency: euros12.Currency}}
	code := harness.Must(s.Invite(ctx, "client", name))
	p := harness.Must(phone.Enrol(ctx, s.URL, code))
	p1 := p.Next(200)
	session := harness.Must(p.Apply(p1.Marshal()))
	nonce := device.NewNonce()
	granted := harness.Must(d.Apply(ctx, deviceapi.ApplyRequest{M1: session.M1, Order: order, Link: deviceapi.LinkWire, Nonce: nonce}))
	harness.Do(session.Open(granted.M2))
	m3 := harness.Must(session.Countersign(ctx, protocol.Approve))
	answer := harness.Must(d.Countersign(ctx, deviceapi.CountersignRequest{Handle: granted.Handle, M3: m3}))
	check = harness.Must(d.Check(nonce, granted.M2))
	check.Services, check.Amount = order.Services, order.Amount
	return check, answer.Decision
}
