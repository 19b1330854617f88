// Package probe tries a PKCS#11 module: which mechanisms work, how it behaves where the
// standard leaves a choice, what its calls cost, and how many sessions are useful. It
// leaves nothing on the token.
package probe

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	ours "countersign/hsm/pkcs11"
)

// Bounds of a whole probe. A call of the module cannot be interrupted, so the last one may
// take longer.
const (
	quickTime = 4500 * time.Millisecond
	fullTime  = 28 * time.Second
)

// Order is what a job gets besides the token and the PIN.
type Order struct {
	Quick    bool          `json:"quick,omitempty"`     // a probe of at most 5 s in place of 30 s
	WrongPIN bool          `json:"wrong_pin,omitempty"` // try a wrong PIN once after the login
	Time     time.Duration `json:"time,omitempty"`      // of each measurement of a loop, nanoseconds
	Sessions []int         `json:"sessions,omitempty"`  // of the measurements of a loop
	Only     []string      `json:"only,omitempty"`      // operations of a loop, all when empty
}

// prober is one probe.
type prober struct {
	*ours.Module
	ctx    context.Context
	order  Order
	listed []uint // mechanisms
	start  time.Time
	end    time.Time
	main   pkcs11.SessionHandle
	report report.Sheet

	made   []pkcs11.ObjectHandle // to be destroyed
	token  bool                  // temporary objects have to be token objects
	number int                   // of the next label

	p256, p384, ed25519, rsa pair
	derive                   pair
	secret, aes              pkcs11.ObjectHandle
}

// stages are the parts of a probe in their order: what matters most comes first,
// for a slow module is left when the time is up.
var stages = []struct {
	name string
	run  func(*prober) error
}{
	{"capabilities", (*prober).capabilities},
	{"ways", (*prober).ways},
	{"behaviour", (*prober).behaviour},
	{"costs", (*prober).costs},
	{"throughput", (*prober).throughput},
	{"session limit", (*prober).sessionLimit},
}

// Run makes the sheet of a token. It returns an error only if the token is absent or
// refuses the PIN; later errors are in the sheet.
func Run(ctx context.Context, cfg ours.Config, order Order) (s report.Sheet, err error) {
	p, err := open(ctx, cfg, order)
	if err != nil {
		return report.Sheet{}, err
	}
	defer p.close()
	if err := p.describe(cfg.Module); err != nil {
		return report.Sheet{}, err
	}
	for _, stage := range stages {
		if !p.hasTime() {
			p.skip(stage.name)
		} else if err := stage.run(p); err != nil {
			p.skip(fmt.Sprintf("%s: %v", stage.name, err))
		}
	}
	p.report.Missing = report.Missing(p.report.Capabilities)
	p.report.Settings = report.Recommend(p.report.Throughput, report.Machine{Cores: runtime.NumCPU(), MaxSessions: p.limit()})
	p.report.TookMS = time.Since(p.start).Milliseconds()
	return p.report, nil
}

// ways finds out how the appliance uses the module. What works in another way than the capability
// shows is not missing.
func (p *prober) ways() error {
	chosen, notices, err := p.Ways()
	if err != nil {
		return err
	}
	p.report.Ways = append(chosen, notices...)
	all := strings.Join(notices, "; ")
	for i, c := range p.report.Capabilities {
		if (c.UsedFor == records || c.UsedFor == opening) && !strings.Contains(all, c.UsedFor) {
			p.report.Capabilities[i].Required = false
		}
	}
	return nil
}

// enter loads the module and logs in; the PIN is erased.
func enter(cfg ours.Config) (*ours.Module, error) {
	defer cfg.PIN.Zero()
	m, err := ours.Load(cfg)
	if err == nil {
		err = m.LogIn(cfg)
	}
	return m, err
}

func open(ctx context.Context, cfg ours.Config, order Order) (*prober, error) {
	raw, err := enter(cfg)
	if err != nil {
		return nil, err
	}
	now, bound := time.Now(), fullTime
	if order.Quick {
		bound = quickTime
	}
	p := &prober{Module: raw, ctx: ctx, order: order, start: now, end: now.Add(bound), main: raw.Login}
	p.report.Skipped = []string{}
	if p.report.Left, err = removeLeft(raw); err != nil {
		return nil, err
	}
	return p, nil
}

// close destroys the objects of this probe. It runs after the report is made, so the next
// probe removes what cannot be destroyed.
func (p *prober) close() {
	for _, h := range slices.Backward(p.made) {
		_ = p.DestroyObject(p.main, h)
	}
	_, _ = removeLeft(p.Module)
}

func (p *prober) hasTime() bool { return p.ctx.Err() == nil && time.Now().Before(p.end) }

func (p *prober) skip(what string) { p.report.Skipped = append(p.report.Skipped, what) }

// found notes a behaviour.
func (p *prober) found(name, answer string) {
	p.report.Behaviour = append(p.report.Behaviour, report.Finding{Name: name, Answer: answer})
}

// limit returns the token's limit of sessions, 0 if it reports none.
func (p *prober) limit() uint { return known(p.Info.MaxRwSessionCount) }

// flagNames are the CK_TOKEN_INFO flags that matter to users of the token.
var flagNames = []struct {
	flag uint
	name string
}{
	{pkcs11.CKF_RNG, "rng"},
	{pkcs11.CKF_WRITE_PROTECTED, "write-protected"},
	{pkcs11.CKF_LOGIN_REQUIRED, "login-required"},
	{pkcs11.CKF_USER_PIN_INITIALIZED, "user-pin-initialized"},
	{pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH, "protected-authentication-path"},
	{pkcs11.CKF_TOKEN_INITIALIZED, "token-initialized"},
	{pkcs11.CKF_USER_PIN_COUNT_LOW, "user-pin-count-low"},
	{pkcs11.CKF_USER_PIN_FINAL_TRY, "user-pin-final-try"},
	{pkcs11.CKF_USER_PIN_LOCKED, "user-pin-locked"},
	{pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "user-pin-to-be-changed"},
}

// List returns what a module shows without a login.
func List(cfg ours.Config) (report.Module, error) {
	raw, err := ours.Load(cfg)
	if err != nil {
		return report.Module{}, err
	}
	m := report.Module{Tokens: []report.Token{}}
	if m.Library, err = library(raw, cfg.Module); err != nil {
		return m, err
	}
	slots, err := raw.GetSlotList(true)
	if err != nil {
		return m, fmt.Errorf("C_GetSlotList: %v: %w", err, hsm.ErrUnavailable)
	}
	for _, s := range slots {
		if info, err := raw.GetTokenInfo(s); err == nil { // one bad slot hides no other
			m.Tokens = append(m.Tokens, describe(raw, s, info))
		}
	}
	return m, nil
}

func (p *prober) describe(module string) (err error) {
	if p.report.Library, err = library(p.Module, module); err != nil {
		return err
	}
	list, err := p.GetMechanismList(p.Slot)
	if err != nil {
		return fmt.Errorf("C_GetMechanismList: %v: %w", err, hsm.ErrUnavailable)
	}
	for _, m := range list {
		p.listed = append(p.listed, m.Mechanism)
	}
	p.report.Token = describe(p.Module, p.Slot, p.Info)
	p.report.Token.Mechanisms = len(list)
	return nil
}

func library(raw *ours.Module, path string) (report.Library, error) {
	info, err := raw.GetInfo()
	if err != nil {
		return report.Library{}, fmt.Errorf("C_GetInfo: %v: %w", err, hsm.ErrUnavailable)
	}
	return report.Library{
		Path: path, Description: info.LibraryDescription, Manufacturer: info.ManufacturerID,
		Version: version(info.LibraryVersion), Cryptoki: version(info.CryptokiVersion),
	}, nil
}

func describe(raw *ours.Module, slot uint, info pkcs11.TokenInfo) report.Token {
	t := report.Token{
		Slot: slot, Label: info.Label, Serial: info.SerialNumber, Manufacturer: info.ManufacturerID, Model: info.Model,
		Hardware: version(info.HardwareVersion), Firmware: version(info.FirmwareVersion), Flags: []string{},
		MaxSessions: known(info.MaxSessionCount), MaxRWSessions: known(info.MaxRwSessionCount),
	}
	for _, f := range flagNames {
		if info.Flags&f.flag != 0 {
			t.Flags = append(t.Flags, f.name)
		}
	}
	if s, err := raw.GetSlotInfo(slot); err == nil { // the description is optional
		t.SlotDescription, t.SlotMaker = s.SlotDescription, s.ManufacturerID
	}
	return t
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// known returns a limit, or 0 if it is CK_EFFECTIVELY_INFINITE or
// CK_UNAVAILABLE_INFORMATION.
func known(limit uint) uint {
	if limit == ^uint(0) {
		return 0
	}
	return limit
}
