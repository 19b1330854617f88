package rotate

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"countersign/softhsm-test/harness"
)

// worker authorizes without pause, one after the other.
type worker struct {
	name   string // of its phone
	strict bool   // at the strict device
	want   int    // exit code of every one
}

var workers = []worker{
	{name: "alice"},
	{name: "bob", strict: true},
	{name: "carol+"},
	{name: "dave"},
}

// exitDenied is what countersign-client ends with when it is refused.
const exitDenied = 3

// load is authorizations under way.
type load struct {
	*stage
	stop   atomic.Bool
	group  sync.WaitGroup
	rounds []atomic.Int64 // of each worker
	good   atomic.Int64   // approved
	shut   atomic.Int64   // refused, as they must be

	newcomers int // phones that were enrolled meanwhile, each used once
}

// start begins the load: the workers, and a suspended phone.
func (s *stage) start(ctx context.Context) *load {
	all := append(append([]worker{}, workers...), worker{name: "mallory", want: exitDenied})
	l := &load{stage: s, rounds: make([]atomic.Int64, len(all))}
	for i, w := range all {
		l.group.Go(func() {
			for !l.stop.Load() && ctx.Err() == nil {
				l.once(ctx, w)
				l.rounds[i].Add(1)
			}
		})
	}
	return l
}

// once is one authorization: one case.
func (l *load) once(ctx context.Context, w worker) {
	link := l.Link
	if w.strict {
		link = l.strict.Link
	}
	var r harness.Result
	err := harness.Try(func() { r = l.authorize(ctx, w.name, link) })
	if ctx.Err() != nil {
		return
	}
	l.Check(err == nil && r.Code == w.want, "%s: exit code %d, want %d: %v %s %s", w.name, r.Code, w.want, err, r.Stdout, r.Stderr)
	switch {
	case err != nil:
	case r.Code == 0:
		l.good.Add(1)
	case r.Code == w.want:
		l.shut.Add(1)
	}
}

// passes waits until every worker has begun and ended two authorizations since the call, so that
// each has met the change before it.
func (l *load) passes(ctx context.Context) {
	before := make([]int64, len(l.rounds))
	for i := range l.rounds {
		before[i] = l.rounds[i].Load()
	}
	harness.Do(harness.Until(ctx, "authorizations", func() (bool, error) {
		for i := range l.rounds {
			if l.rounds[i].Load() < before[i]+2 {
				return false, nil
			}
		}
		return true, ctx.Err()
	}))
}

// end stops the load and checks its traces: as many acts as approvals, and one name for each phone
// and device under every version of mac.
func (l *load) end(before int) {
	l.stop.Store(true)
	l.group.Wait()
	acts, names := l.acts()
	l.Check(int64(len(acts)-before) == l.good.Load(), "%d acts for %d approvals: %s", len(acts)-before, l.good.Load(), refusals(l.Log()+l.strict.Log()))
	for at, phones := range map[string]int{"relay": 3 + l.newcomers, "strict": 1} {
		l.Check(len(names[at]) == phones, "%s knows %d names of %d phones: pairwise ids have changed", at, len(names[at]), phones)
	}
	l.Say("%d approved, %d refused as they must be", l.good.Load(), l.shut.Load())
}

// refusals are what devices logged of decisions that they did not take.
func refusals(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, "decision refused") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, " ")
}

// acts returns the acts of both devices, and the pairwise ids that each has seen.
func (s *stage) acts() (all []harness.Act, names map[string]map[string]bool) {
	names = map[string]map[string]bool{"relay": {}, "strict": {}}
	for at, path := range map[string]string{"relay": s.Hooklog, "strict": s.strict.Hooklog} {
		acts := harness.Must(harness.ReadActs(path))
		for _, act := range acts {
			names[at][act.Pairwise] = true
		}
		all = append(all, acts...)
	}
	return all, names
}

// keys asks for the key versions of a step or a list.
func (s *stage) keys(ctx context.Context, args ...string) (keys []key, r harness.Result) {
	r = harness.Must(s.Ctl(ctx, append(append([]string{"key"}, args...), "-o", "json")...))
	if r.Code == 0 {
		harness.Do(json.Unmarshal([]byte(r.Stdout), &keys))
	}
	return keys, r
}

// key holds the fields of a key version that are checked.
type key struct {
	Name     string `json:"name"`
	Version  uint64 `json:"version"`
	State    string `json:"state"`
	Accepted bool   `json:"accepted"`
	ID       string `json:"id"`
	Public   string `json:"public_key"`
}

func (k key) ref() string { return fmt.Sprintf("%s@%d", k.Name, k.Version) }
