package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
)

// exchange is one request and what came of it.
type exchange struct {
	begun      time.Time
	took       time.Duration
	overLink   bool
	code       protocol.Code // 0: a message of the protocol came back
	retryAfter bool          // Retry-After came with it, or a time in ME
	err        error         // of the connection
}

func (e exchange) failed() bool { return e.code != 0 || e.err != nil }

// foreseen: answered, or refused in the words for an HSM that is away or busy.
func (e exchange) foreseen() bool {
	return e.err == nil && (e.code == 0 || e.code == protocol.CodeBusy || e.code == protocol.CodeHSM)
}

func (e exchange) String() string {
	return fmt.Sprintf("code %d after %v%s", uint8(e.code), e.took.Round(time.Millisecond), because(e.err))
}

// approval is an authorization that was approved, as its phone knows it.
type approval struct {
	at          time.Time
	serial      protocol.Serial
	transaction protocol.TransactionID
	acts        bool // a relay acts on it
}

// journal is what all phones and devices of a scene have seen. It is safe for
// concurrent use.
type journal struct {
	mu        sync.Mutex // guards what follows
	spoil     bool       // break the next decision on its way to the harness
	exchanges []exchange
	approved  []approval
	denied    []protocol.Code
	bad       []error // signatures that were released and do not verify, answers that are none
	verified  int
}

func (j *journal) add(e exchange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.exchanges = append(j.exchanges, e)
}

// check verifies a decision or receipt that was released.
func (j *journal) check(verify func([]byte) (receipt.Decision, error), signed []byte) (receipt.Decision, bool) {
	j.mu.Lock()
	if j.spoil && len(signed) != 0 {
		signed, j.spoil = link.Flip(signed, 8*len(signed)-1), false
	}
	j.mu.Unlock()
	d, err := verify(signed) // not under the lock: all phones verify
	j.mu.Lock()
	defer j.mu.Unlock()
	j.verified++
	if err != nil {
		j.bad = append(j.bad, fmt.Errorf("released: %w", err))
	}
	return d, err == nil
}

func (j *journal) blame(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bad = append(j.bad, err)
}

func (j *journal) approve(a approval) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.approved = append(j.approved, a)
}

func (j *journal) deny(c protocol.Code) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.denied = append(j.denied, c)
}

func (j *journal) approvals() []approval {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.approved)
}

func (j *journal) denials() []protocol.Code {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.denied)
}

// since are the exchanges that began in a time.
func (j *journal) since(from, to time.Time) (some []exchange) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.exchanges {
		if !e.begun.Before(from) && e.begun.Before(to) {
			some = append(some, e)
		}
	}
	return some
}

// touched are the exchanges that were under way at a time, or began after it.
func (j *journal) touched(at time.Time) []exchange {
	return filter(j.since(time.Time{}, time.Now()), func(e exchange) bool { return !e.begun.Add(e.took).Before(at) })
}

func (j *journal) last() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.exchanges) == 0 {
		return errors.New("nothing was sent")
	}
	return fmt.Errorf("last request: %v%s", j.exchanges[len(j.exchanges)-1], first(j.bad))
}

// rate is how many were approved per second in a time.
func (j *journal) rate(from, to time.Time) float64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, a := range j.approved {
		if !a.at.Before(from) && a.at.Before(to) {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// quantile of the times of some exchanges, 0 to 1; 0 for none.
func quantile(some []exchange, q float64) time.Duration {
	if len(some) == 0 {
		return 0
	}
	var all []time.Duration
	for _, e := range some {
		all = append(all, e.took)
	}
	slices.Sort(all)
	return all[min(int(q*float64(len(all))), len(all)-1)]
}

func filter(some []exchange, keep func(exchange) bool) (kept []exchange) {
	for _, e := range some {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

// codes counts exchanges by what came back, for a line of the report.
func codes(some []exchange) string {
	count := map[string]int{}
	for _, e := range some {
		what := "answered"
		switch {
		case e.err != nil:
			what = "cut off"
		case e.code != 0:
			what = fmt.Sprintf("code %d", uint8(e.code))
		}
		count[what]++
	}
	return fmt.Sprint(count)
}

// ops reads the operations listener of the appliance.
type ops struct {
	url    string
	pid    int
	client *http.Client
}

func newOps(url string, pid int) *ops {
	return &ops{url: url, pid: pid, client: &http.Client{Timeout: 5 * time.Second}}
}

func (o *ops) get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url+path, nil)
	if err != nil {
		return 0, nil, err
	}
	res, err := o.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }() // read to its end, or an error is returned
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// ready waits for an answer of /readyz; how long it took.
func (o *ops) ready(ctx context.Context, want bool) (time.Duration, error) {
	begun := time.Now()
	err := harness.Until(ctx, fmt.Sprintf("/readyz to be %v", want), func() (bool, error) {
		status, _, err := o.get(ctx, "/readyz")
		return (status == http.StatusOK) == want, err
	})
	return time.Since(begun), err
}

// metrics are all samples by name, with those that differ in labels added up.
func (o *ops) metrics(ctx context.Context) (map[string]float64, error) {
	_, body, err := o.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	samples := map[string]float64{}
	for line := range bytes.Lines(body) {
		text := strings.TrimSpace(string(line))
		at := strings.LastIndexByte(text, ' ')
		if at < 0 || text[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(text[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		name, _, _ := strings.Cut(text[:at], "{")
		samples[name] += value
	}
	return samples, nil
}

// metric is one of them, 0 if there is none.
func (o *ops) metric(ctx context.Context, name string) (float64, error) {
	all, err := o.metrics(ctx)
	return all[name], err
}

// held is what the daemon holds.
type held struct {
	goroutines, descriptors int
	threads                 int
	memory                  int // resident, MiB
}

func (h held) String() string {
	return fmt.Sprintf("%d goroutines, %d threads, %d descriptors, %d MiB", h.goroutines, h.threads, h.descriptors, h.memory)
}

func (h held) most(other held) held {
	return held{
		goroutines: max(h.goroutines, other.goroutines), descriptors: max(h.descriptors, other.descriptors),
		threads: max(h.threads, other.threads), memory: max(h.memory, other.memory),
	}
}

func (o *ops) held(ctx context.Context) (held, error) {
	m, err := o.metrics(ctx)
	if err != nil {
		return held{}, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.pid))
	if err != nil {
		return held{}, err
	}
	h := held{
		goroutines: int(m["go_goroutines"]), descriptors: int(m["process_open_fds"]),
		memory: int(m["process_resident_memory_bytes"]) >> 20,
	}
	for line := range bytes.Lines(status) {
		if text, ok := bytes.CutPrefix(line, []byte("Threads:")); ok {
			h.threads, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
	}
	return h, err
}

// watch looks at what the daemon holds until stop is called, which gives the most.
func (o *ops) watch(ctx context.Context) (stop func() held) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan held)
	go func() {
		var most held
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if now, err := o.held(ctx); err == nil { // or it was stopped while it asked
				most = most.most(now)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		done <- most
	}()
	return func() held {
		cancel()
		return <-done
	}
}

// Bounds of what a fault may cost the daemon beyond what it held under load before.
var bound = held{goroutines: 100, threads: 30, descriptors: 40, memory: 100}

func (h held) within(before held) bool {
	return h.goroutines <= before.goroutines+bound.goroutines && h.threads <= before.threads+bound.threads &&
		h.descriptors <= before.descriptors+bound.descriptors && h.memory <= before.memory+bound.memory
}
