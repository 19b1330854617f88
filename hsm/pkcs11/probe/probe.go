// Package probe tries a PKCS#11 module: which mechanisms work, how it behaves where
// the standard leaves it free, what its calls cost, and how many sessions are worth
// having. It runs in an hsm-worker of its own and leaves nothing on the token.
package probe

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/miekg/pkcs11"

	ours "countersign/hsm/pkcs11"
	"countersign/hsm/sheet"
)

// Bounds of a whole probe. A call of the module cannot be interrupted, so its last
// one may go over.
const (
	quickTime = 4500 * time.Millisecond
	fullTime  = 28 * time.Second
)

// prober is one probe on its way.
type prober struct {
	*ours.Raw
	ctx    context.Context
	order  sheet.Order
	listed []uint // mechanisms
	start  time.Time
	end    time.Time
	main   pkcs11.SessionHandle
	sheet  sheet.Sheet

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
	{"behaviour", (*prober).behaviour},
	{"costs", (*prober).costs},
	{"throughput", (*prober).throughput},
	{"session limit", (*prober).sessionLimit},
}

// Run makes the sheet of a token. Only a token that is not there and a refused PIN
// are errors; what fails later is in the sheet.
func Run(ctx context.Context, cfg ours.Config, order sheet.Order) (s sheet.Sheet, err error) {
	p, err := open(ctx, cfg, order)
	if err != nil {
		return sheet.Sheet{}, err
	}
	defer p.close()
	if err := p.describe(cfg.Module); err != nil {
		return sheet.Sheet{}, err
	}
	for _, stage := range stages {
		if !p.hasTime() {
			p.skip(stage.name)
		} else if err := stage.run(p); err != nil {
			p.skip(fmt.Sprintf("%s: %v", stage.name, err))
		}
	}
	p.sheet.Missing = sheet.Missing(p.sheet.Capabilities)
	p.sheet.Settings = sheet.Recommend(p.sheet.Throughput, sheet.Machine{Cores: runtime.NumCPU(), MaxSessions: p.limit()})
	p.sheet.TookMS = time.Since(p.start).Milliseconds()
	return p.sheet, nil
}

func open(ctx context.Context, cfg ours.Config, order sheet.Order) (*prober, error) {
	raw, err := ours.OpenRaw(cfg)
	if err != nil {
		return nil, err
	}
	now, bound := time.Now(), fullTime
	if order.Quick {
		bound = quickTime
	}
	p := &prober{Raw: raw, ctx: ctx, order: order, start: now, end: now.Add(bound), main: raw.Login}
	p.sheet.Skipped = []string{}
	if p.sheet.Left, err = removeLeft(raw); err != nil {
		return nil, err
	}
	return p, nil
}

// close destroys what is left of this probe. It runs after the report is made, so
// what cannot be destroyed is left to the next probe.
func (p *prober) close() {
	for _, h := range slices.Backward(p.made) {
		_ = p.DestroyObject(p.main, h)
	}
	_, _ = removeLeft(p.Raw)
}

func (p *prober) hasTime() bool { return p.ctx.Err() == nil && time.Now().Before(p.end) }

func (p *prober) skip(what string) { p.sheet.Skipped = append(p.sheet.Skipped, what) }

// found notes a behaviour.
func (p *prober) found(name, answer string) {
	p.sheet.Behaviour = append(p.sheet.Behaviour, sheet.Finding{Name: name, Answer: answer})
}

// limit is the token's limit of sessions, 0 for none that it tells of.
func (p *prober) limit() uint { return known(p.Info.MaxRwSessionCount) }
