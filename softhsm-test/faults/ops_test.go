package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"countersign/softhsm-test/harness"
)

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
