package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/hostile/rows"
	"countersign/softhsm-test/hostile/world"
)

// outcome is what came of an operation on an altered database.
type outcome int

// The outcomes. The zero value is none of them.
const (
	refused  outcome = iota + 1 // it failed, or gave less than in the untouched world
	harmless                    // it did what it does in the untouched world
	alarm                       // the same or less, and the appliance reported a forgery
	conceded                    // it gave more, which SECURITY.md says that nothing here prevents
	crashed                     // it panicked: a denial of service, and a defect
	granted                     // it gave what it should not have
)

var outcomeNames = map[outcome]string{
	refused: "refused", harmless: "harmless", alarm: "alarm", conceded: "conceded", crashed: "crashed", granted: "GRANTED",
}

func (o outcome) String() string { return outcomeNames[o] }

// concededTables are the tables whose records may grant their earlier rights if a whole table is
// restored, as SECURITY.md lists it under "What a seal cannot show", with the same names in the
// same order.
var concededTables = map[string]bool{"client": true, "restraint": true, "device": true, "decision": true, "record": true, together: true, everything: true}

// Tables that are put back at once.
const (
	together   = "client+restraint+device+decision+attempt" // what does not hang on the head
	everything = "all and the anchor"
)

// concedes: of all tables put back, without the anchor, a running appliance uses what does
// not hang on the head, and a host that lost its anchor restores what it is given.
func (c attempt) concedes() bool {
	if c.Replays && c.Table == rows.Everything {
		group := groupOf(c.operation)
		return group == "restore" || c.live && group != "enrol" && group != "administer"
	}
	return c.Replays && concededTables[c.Table]
}

// attempt is one case before it is run.
type attempt struct {
	rows.Alteration
	operation
	live bool // altered while the appliance runs
}

func (c attempt) String() string {
	when := ""
	if c.live {
		when = ", while it runs"
	}
	return fmt.Sprintf("%s%s: %s", c.Alteration, when, c.operation.name)
}

// verdict is one case that was run.
type verdict struct {
	attempt
	outcome
	extra []grant // that should not have been
	err   error   // of the operation
	told  string  // grants and error: what the outcome was made of
	heard string  // log of the appliance
}

// lab runs cases, each on a copy of the world's database.
type lab struct {
	*world.World
	dir string
}

// caseLimit bounds one case.
const caseLimit = 20 * time.Second

// run runs one case. An error is of the harness, or wraps [rows.ErrImpossible].
func (l *lab) run(ctx context.Context, c attempt, worker int) (verdict, error) {
	path := filepath.Join(l.dir, fmt.Sprintf("case-%d.db", worker))
	defer remove(path)
	if err := world.CopyHouse(path, l.Template); err != nil {
		return verdict{}, err
	}
	if !c.live {
		if err := c.Apply(ctx, path); err != nil {
			return verdict{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, caseLimit)
	defer cancel()
	place := l.Place(path)
	h, err := open(ctx, place)
	if err != nil {
		return judge(c, h, nil, err), nil
	}
	s := &scene{House: h, World: l.World, place: place}
	defer func() { _ = s.House.Close() }() // the file is thrown away
	if c.live {
		if err := c.Apply(ctx, path); err != nil {
			return verdict{}, err
		}
	}
	err = guarded(func() error { return c.do(s, ctx) })
	return judge(c, s.House, s.grants, err), nil
}

// open starts an appliance. What panics is an error.
func open(ctx context.Context, place world.Place) (h *world.House, err error) {
	err = guarded(func() (err error) { h, err = world.Open(ctx, place); return err })
	return h, err
}

// errPanic: the product panicked.
var errPanic = errors.New("panic")

func guarded(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, p, firstOf(debug.Stack()))
		}
	}()
	return do()
}

// firstOf is the place of a panic in the product.
func firstOf(stack []byte) string {
	for line := range strings.Lines(string(stack)) {
		if strings.Contains(line, ".go:") && strings.Contains(line, "/appliance/") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func judge(c attempt, h *world.House, grants []grant, err error) verdict {
	v := verdict{attempt: c, err: err, told: fmt.Sprint(grants, err)}
	for _, g := range grants {
		if !g.within(c.honest) {
			v.extra = append(v.extra, g)
		}
	}
	if h != nil {
		v.heard = h.Heard()
	}
	alarmed := world.Told(err) || h != nil && h.Alarms() > 0
	switch {
	case len(v.extra) > 0 && c.concedes():
		v.outcome = conceded
	case len(v.extra) > 0:
		v.outcome = granted
	case errors.Is(err, errPanic):
		v.outcome = crashed
	case alarmed:
		v.outcome = alarm
	case err != nil || len(grants) < len(c.honest):
		v.outcome = refused
	default:
		v.outcome = harmless
	}
	return v
}

func remove(path string) {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal", ".lock", ".copy", ".anchor", ".anchor.new", ".salvaged", ".salvaged-wal", ".salvaged-shm", ".salvaged.lock"} {
		_ = os.Remove(path + suffix) // at worst it stays in the temporary directory
	}
}

// workers is how many cases run at once.
const workers = 2

// all runs cases and gives them to judge as they come, one at a time. What the schema
// does not admit is no case.
func (l *lab) all(ctx context.Context, cases []attempt, with func(verdict)) {
	next := make(chan attempt)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // guards failed, and the calls of with
	var failed error
	var running sync.WaitGroup
	for worker := range workers {
		running.Go(func() {
			for c := range next {
				v, err := l.run(ctx, c, worker)
				mu.Lock()
				switch {
				case errors.Is(err, rows.ErrImpossible):
				case err != nil:
					failed = errors.Join(failed, fmt.Errorf("%s: %w", c, err))
					cancel()
				default:
					with(v)
				}
				mu.Unlock()
			}
		})
	}
feeding:
	for _, c := range cases {
		select {
		case next <- c:
		case <-ctx.Done():
			break feeding
		}
	}
	close(next)
	running.Wait()
	harness.Do(failed)
}
