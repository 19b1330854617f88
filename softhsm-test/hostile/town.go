package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/enrol"
	"countersign/protocol/message"
	"countersign/protocol/trust"
	"countersign/softhsm-test/hostile/world"
	"countersign/softhsm-test/rig"
	"countersign/softhsm-test/rig/device"
	"countersign/softhsm-test/rig/phone"
)

// town is the real programs with a real token: `countersignd dev`, a device, and phones
// that come by once for each case.
type town struct {
	*rig.Appliance
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

func openTown(ctx context.Context, bin rig.Bin, dir string) (*town, error) {
	t := &town{running: true}
	var err error
	if t.Appliance, err = rig.Start(ctx, rig.Config{Bin: bin, Dir: dir}); err != nil {
		return nil, err
	}
	code, err := t.Invite(ctx, "device", "till")
	if err == nil {
		t.till, err = device.Enrol(ctx, device.Config{URL: t.URL, CA: t.CA}, code)
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.root, t.certs = t.till.Trust.Root, append(t.till.Trust.KeyCerts(trust.UseDecision), t.till.Trust.KeyCerts(trust.UseClientCA)...)
	return t, nil
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
		err = &rig.Exit{Command: fmt.Sprint(args), Code: r.Code, Stderr: r.Stderr}
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
