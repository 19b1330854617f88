package hostile

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/device"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// kind is one way to attack the real programs.
type kind struct {
	name    string
	prepare func(context.Context, *visit) error
	alter   func(*visit) rows.Alteration
	attack  func(context.Context, *visit) (granted bool, err error)
}

// kinds of alterations of rows; lending is by triggers.
var (
	kinds = []kind{
		{"a refusal is made an approval", refusing, ofDialog(protocol.ResultApproved), repeating},
		{"what waits is made an approval", waiting, ofDialog(protocol.ResultApproved), repeating},
		{"a thief's UV key, and no certificate", robbed, ofThief, repeating},
		{"a revoked client is active", revoked, onName("UPDATE client SET status = 1 WHERE name = ?"), entering},
		{"an invitation that nobody made", inventing, ofCode, enrolling},
		{"an open invitation gets a role", invitedOpen, onName(`UPDATE invitation SET roles = '["approver"]' WHERE name = ? || '-new'`), enrollingAsApprover},
		{"two clients swap names", pairing, swapping, revokingByName},
		{"a client has another's signing key", pairing, lending, impersonating},
	}
	triggers = []kind{{"a trigger lends a role", waitingFor, lentTo, approving}}
)

// Rounds of the real programs: each alters two records of each kind.
const (
	rounds      = 6
	quickRounds = 1
)

// programs attacks `countersignd dev` with a token of SoftHSM.
func (s *stage) programs(ctx context.Context) {
	bin := harness.Must(harness.Built())
	t := openTown(ctx, bin, filepath.Join(s.dir, "dev"))
	n, each := rounds, append(slices.Clone(kinds), kinds...)
	if testing.Short() {
		n, each = quickRounds, kinds
	}
	judge := func(k kind, granted bool) { s.Check(!granted, "GRANTED by the real programs: %s", k.name) }
	for i := range n {
		r := round{live: i%3 == 2, kinds: each, visits: make([]*visit, len(each))}
		if err := t.play(ctx, r, judge); err != nil {
			harness.Do(errors.Join(err, t.close()))
			return
		}
	}
	for i := range 4 {
		if testing.Short() && i > 0 {
			break
		}
		if err := t.play(ctx, round{live: i%2 == 0, kinds: triggers, visits: make([]*visit, 1)}, judge); err != nil {
			harness.Do(errors.Join(err, t.close()))
			return
		}
	}
	harness.Do(t.close())
}

func refusing(ctx context.Context, v *visit) (err error) {
	if v.dialog, err = v.apply(ctx, v.phone, pay(900_000)); err == nil {
		_, err = v.says(ctx, v.dialog, protocol.Refuse)
	}
	return err
}

func waiting(ctx context.Context, v *visit) (err error) {
	if v.dialog, err = v.apply(ctx, v.phone, pay(1_000_000)); err == nil {
		_, err = v.says(ctx, v.dialog, protocol.Approve)
	}
	return err
}

// robbed: the thief of a phone has a UV key of his own, refuses, and then approves.
func robbed(ctx context.Context, v *visit) (err error) {
	v.phone.Give(phone.Full())
	if v.dialog, err = v.apply(ctx, v.phone, strict); err == nil {
		_, err = v.says(ctx, v.dialog, protocol.Refuse)
	}
	if err == nil {
		v.dialog.M3, err = v.dialog.Countersign(ctx, protocol.Approve)
	}
	return err
}

func revoked(ctx context.Context, v *visit) error {
	return v.must(ctx, "client", "revoke", "--yes", v.name)
}

func inventing(_ context.Context, v *visit) error {
	var random [13]byte
	copy(random[:], v.name)
	v.code = enrol.NewActivationCode(v.root.RootHash(), random)
	return nil
}

func invitedOpen(ctx context.Context, v *visit) error {
	code, err := v.Invite(ctx, "client", v.name+"-new")
	if err == nil {
		v.code, err = enrol.ParseActivationCode(code)
	}
	return err
}

func pairing(ctx context.Context, v *visit) (err error) {
	v.other, err = v.newcomer(ctx)
	return err
}

// waitingFor has another's approval wait for a second approver.
func waitingFor(ctx context.Context, v *visit) error {
	return errors.Join(pairing(ctx, v), waiting(ctx, v.other))
}

func ofDialog(to protocol.Result) func(*visit) rows.Alteration {
	return func(v *visit) rows.Alteration {
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error { return forge(ctx, tx, v.dialog, to) })
	}
}

func ofThief(v *visit) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		_, req, err := v.phone.EnrolRequest(ctx, v.code)
		if err != nil {
			return err
		}
		return errors.Join(
			execs(ctx, tx, "UPDATE client SET uv_key = ?, cert = NULL WHERE name = ?", req.UVKey[:], v.name),
			forge(ctx, tx, v.dialog, protocol.ResultApproved))
	})
}

func onName(statement string) func(*visit) rows.Alteration {
	return func(v *visit) rows.Alteration {
		return rows.Func("", func(ctx context.Context, tx *sql.Tx) error { return execs(ctx, tx, statement, v.name) })
	}
}

func ofCode(v *visit) rows.Alteration {
	sum := sha256.Sum256([]byte(v.code.String()))
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return execs(ctx, tx, `INSERT INTO invitation (code, kind, name, display, floor, created_us, expires_us, roles, number) VALUES (?, 'client', ?, '', 0, ?, ?, '["approver"]', 1)`,
			sum[:], v.name+"-new", time.Now().UnixMicro(), time.Now().Add(time.Hour).UnixMicro())
	})
}

func swapping(v *visit) rows.Alteration { return swapped("client", v.name, v.other.name)(nil) }

func lending(v *visit) rows.Alteration {
	return rows.Func("", func(ctx context.Context, tx *sql.Tx) error {
		return errors.Join(
			execs(ctx, tx, "DELETE FROM client WHERE name = ?", v.other.name),
			execs(ctx, tx, "UPDATE client SET signing_key = ? WHERE name = ?", signingKey(ctx, v.other), v.name))
	})
}

func signingKey(ctx context.Context, v *visit) []byte {
	_, req, err := v.phone.EnrolRequest(ctx, v.code)
	if err != nil {
		return nil
	}
	return req.SigningKey[:]
}

func lentTo(v *visit) rows.Alteration {
	return rows.SQL("",
		fmt.Sprintf(`CREATE TRIGGER hostile_lend AFTER INSERT ON attempt BEGIN UPDATE client SET roles = '["approver","uv"]' WHERE name = '%s'; END`, v.name),
		fmt.Sprintf(`CREATE TRIGGER hostile_back AFTER INSERT ON decision BEGIN UPDATE client SET roles = '["uv"]' WHERE name = '%s'; END`, v.name))
}

func repeating(ctx context.Context, v *visit) (bool, error) {
	return v.send(ctx, v.dialog, v.dialog.M3)
}

func entering(ctx context.Context, v *visit) (bool, error) { return v.enters(ctx, v.phone) }

func (v *visit) enters(ctx context.Context, p *phone.Phone) (bool, error) {
	d, err := v.apply(ctx, p, door)
	if err != nil {
		return false, err
	}
	return v.says(ctx, d, protocol.Approve)
}

func enrolling(ctx context.Context, v *visit) (bool, error) {
	_, err := phone.EnrolWith(ctx, phone.Application{URL: v.URL, Code: v.code.String()})
	return err == nil, err
}

func enrollingAsApprover(ctx context.Context, v *visit) (bool, error) {
	if enrolled, err := enrolling(ctx, v); !enrolled {
		return false, err
	}
	c, err := v.Client(ctx, v.name+"-new")
	return slices.Contains(c.Roles, "approver"), err
}

func revokingByName(ctx context.Context, v *visit) (bool, error) {
	if err := revoked(ctx, v); err != nil {
		return false, err
	}
	return entering(ctx, v)
}

// impersonating says that it is the one, and signs as the other.
func impersonating(ctx context.Context, v *visit) (bool, error) {
	p := *v.other.phone
	p.ID, p.Counter = v.phone.ID, 100
	return v.enters(ctx, &p)
}

// approving gives the second approval.
func approving(ctx context.Context, v *visit) (bool, error) {
	d, err := v.apply(ctx, v.phone, world.Ask{Service: protocol.ServiceCoApproval, First: v.other.dialog})
	if err != nil {
		return false, err
	}
	return v.says(ctx, d, protocol.Approve)
}

// town is the real programs with a real token: `countersignd dev`, a device, and phones
// that come by once for each case.
type town struct {
	*harness.Appliance
	till    *device.Device
	root    protocol.PublicKey
	certs   [][]byte // KeyCerts that the till knows
	visits  int
	running bool
}

// visit is one case: a phone with what happened to it before the alteration.
type visit struct {
	*town
	name   string
	phone  *phone.Phone
	other  *visit // whose record is touched too, or nil
	dialog *world.Dialog
	code   enrol.ActivationCode
}

func openTown(ctx context.Context, bin harness.Bin, dir string) *town {
	t := &town{running: true}
	var err error
	t.Appliance = harness.Must(harness.Start(ctx, harness.Config{Bin: bin, Dir: dir}))
	code, err := t.Invite(ctx, "device", "till")
	if err == nil {
		t.till, err = device.Enrol(ctx, device.Config{URL: t.URL, CA: t.CA}, code)
	}
	if err != nil {
		harness.Do(errors.Join(err, t.close()))
		return nil
	}
	t.root, t.certs = t.till.Trust.Root, append(t.till.Trust.KeyCerts(trust.UseDecision), t.till.Trust.KeyCerts(trust.UseClientCA)...)
	return t
}

func (t *town) close() error {
	if !t.running {
		return nil
	}
	t.running = false
	_, err := t.Stop()
	return err
}

// start starts the appliance again. One that does not start is no error: false.
func (t *town) start(ctx context.Context) bool {
	t.running = t.Restart(ctx) == nil
	if t.running {
		t.till = t.till.At(t.URL)
	}
	return t.running
}

func (t *town) database() string { return filepath.Join(t.Config.Dir, "countersign.db") }

func (t *town) must(ctx context.Context, args ...string) error {
	r, err := t.Ctl(ctx, args...)
	if err == nil && r.Code != 0 {
		err = &harness.Exit{Command: fmt.Sprint(args), Code: r.Code, Stderr: r.Stderr}
	}
	return err
}

// newcomer enrols a phone.
func (t *town) newcomer(ctx context.Context) (*visit, error) {
	t.visits++
	v := &visit{town: t, name: fmt.Sprintf("visitor-%d", t.visits)}
	code, err := t.Invite(ctx, "client", v.name)
	if err == nil {
		v.phone, err = phone.EnrolWith(ctx, phone.Application{URL: t.URL, Code: code, Means: phone.Full()})
	}
	return v, err
}

// apply begins a dialog at the till.
func (t *town) apply(ctx context.Context, p *phone.Phone, ask world.Ask) (*world.Dialog, error) {
	d := &world.Dialog{Ask: ask, Nonce: device.NewNonce()}
	d.Device.ID, d.Device.Name = t.till.ID, "till"
	p1 := p.Next(ask.Service)
	d.Serial = p1.Serial
	var err error
	if d.Session, err = p.Apply(p1.Marshal()); err != nil {
		return nil, err
	}
	res, err := t.till.Apply(ctx, d.Request())
	if err != nil {
		return nil, err
	}
	d.Handle = res.Handle
	if err := d.Open(res.M2); err != nil {
		return nil, err
	}
	if d.P2.Code != 0 {
		return nil, d.P2.Code
	}
	d.Chal, err = message.ChallengeOf(res.M2)
	return d, err
}

// send sends an M3; approved is whether the device may act on what came back.
func (t *town) send(ctx context.Context, d *world.Dialog, m3 []byte) (approved bool, err error) {
	d.M3 = m3
	res, err := t.till.Countersign(ctx, deviceapi.CountersignRequest{Handle: d.Handle, M3: m3})
	if err != nil {
		return false, err
	}
	d.Answer.CountersignResponse = res
	got, err := d.Check(t.root, t.certs, uint64(time.Now().Unix())).Verify(res.Decision)
	return err == nil && got.Result == protocol.ResultApproved, nil
}

// says answers a dialog honestly.
func (t *town) says(ctx context.Context, d *world.Dialog, v protocol.Verdict) (approved bool, err error) {
	m3, err := d.Countersign(ctx, v)
	if err != nil {
		return false, err
	}
	return t.send(ctx, d, m3)
}

// round is some visits whose records are altered together.
type round struct {
	live   bool
	visits []*visit
	kinds  []kind
}

// play prepares, alters, attacks, and puts the database back.
func (t *town) play(ctx context.Context, r round, judge func(kind, bool)) (err error) {
	for i, k := range r.kinds {
		if r.visits[i], err = t.newcomer(ctx); err == nil {
			err = k.prepare(ctx, r.visits[i])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	kept := t.database() + ".kept"
	if err := errors.Join(t.close(), world.CopyFile(kept, t.database())); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.putBack(ctx, kept)) }()
	if r.live && !t.start(ctx) {
		return errors.New("the appliance did not start")
	}
	for i, k := range r.kinds {
		if err := k.alter(r.visits[i]).Apply(ctx, t.database()); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	if !r.live && !t.start(ctx) {
		for _, k := range r.kinds {
			judge(k, false)
		}
		return nil
	}
	for i, k := range r.kinds {
		granted, _ := k.attack(ctx, r.visits[i]) // an error is a refusal
		judge(k, granted)
	}
	return nil
}

func (t *town) putBack(ctx context.Context, kept string) error {
	err := t.close()
	remove(t.database())
	if err := errors.Join(err, os.Rename(kept, t.database())); err != nil {
		return err
	}
	if !t.start(ctx) {
		return errors.New("the appliance does not start on its own database")
	}
	return nil
}
