package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"countersign/internal/harden"
	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
	"countersign/relay/journal"
	"countersign/relay/uplink"
)

// Hook is the program that acts on an approval. It reads one line of JSON, an [Act], from
// its standard input. Exit code 0 means that the act was performed; any other code, a signal
// or the timeout means that it was not. The relay logs its standard error and drops its
// standard output.
type Hook struct {
	Command []string      // program and arguments; empty: no program
	Timeout time.Duration // after which it is killed, with the processes that it started
	// Environment names further variables that it gets: see [harden.Environment].
	Environment []string
}

// Act is the input of a hook: the decision, with the text and reference of the order.
type Act struct {
	Transaction string           `json:"transaction"` // 16 hexadecimal digits
	Service     protocol.Service `json:"service"`
	Amount      *ActAmount       `json:"amount"`
	Level       protocol.Level   `json:"level"`
	Factors     []string         `json:"factors"`
	Device      string           `json:"device"`
	Pairwise    string           `json:"pairwise"` // the client's identifier at this device only
	IssuedAt    time.Time        `json:"issued_at"`
	Text        string           `json:"text,omitempty"`
	Reference   string           `json:"reference,omitempty"`
}

// ActAmount is an amount in minor units.
type ActAmount struct {
	Minor    uint64 `json:"minor"`
	Currency string `json:"currency"`
}

func amountJSON(a *protocol.Amount) *ActAmount {
	if a == nil {
		return nil
	}
	return &ActAmount{a.Minor, a.Currency}
}

func newAct(d receipt.Decision, o deviceapi.Order) Act {
	return Act{
		Transaction: d.Transaction.String(), Service: d.Service, Amount: amountJSON(d.Amount), Level: d.Level,
		Factors: strings.Split(d.Factors.String(), "+"), Device: d.Device.String(), Pairwise: d.Pairwise.String(),
		IssuedAt: time.Unix(int64(d.IssuedAt), 0).UTC(), Text: o.Text, Reference: o.Reference,
	}
}

// act shows the approval and runs the hook. The phone's answer waits for the hook, but not
// longer than ActWait.
func (r *Relay) act(x *exchange, a *authorization, res result) {
	r.show(*res.Decision)
	done := make(chan struct{})
	r.acts.Go(func() {
		defer close(done)
		r.runHook(x, a, res)
	})
	select {
	case <-done:
	case <-time.After(r.config.ActWait):
	case <-x.ctx.Done():
	}
}

// show writes an approval on the display.
func (r *Relay) show(d receipt.Decision) {
	line := fmt.Sprintf("approved: service %v", d.Service)
	if d.Amount != nil {
		line += ", " + d.Amount.Decimal()
	}
	r.display.Lock()
	defer r.display.Unlock()
	if _, err := fmt.Fprintln(r.config.Display, line); err != nil {
		r.log.Warn("showing an approval failed", "error", err)
	}
}

func (r *Relay) runHook(x *exchange, a *authorization, res result) {
	start := time.Now()
	err := r.config.Hook.run(newAct(*res.Decision, a.order), r.log.With(res.logFields()...))
	res.Performed = err == nil
	if err == nil {
		r.log.Info("acted", res.logFields("took", time.Since(start).String())...)
		r.metrics.acts.WithLabelValues(actDone).Inc()
	} else {
		r.log.Error("hook failed", res.logFields("error", err)...)
		r.metrics.acts.WithLabelValues(actFailed).Inc()
	}
	r.step(x, a, event{kind: acted, result: res})
}

// killWait limits how long descendants of a hook that ended may keep its files open.
const killWait = time.Second

// run runs the program. An error means that the act was not performed.
func (h Hook) run(a Act, log hclog.Logger) error {
	if len(h.Command) == 0 {
		return nil
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	// Not the relay's context: stopping the relay must not interrupt an act.
	ctx, cancel := context.WithTimeout(context.Background(), h.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Command[0], h.Command[1:]...)
	cmd.Stdin, cmd.Env = bytes.NewReader(append(line, '\n')), harden.Environment(h.Environment)
	// In a process group of its own it gets no signals from a terminal, and the kill reaches
	// every process that it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killWait
	err = runLogged(cmd, log)
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		return nil // it may leave a process in the background
	case ctx.Err() != nil:
		return fmt.Errorf("running hook: killed after %v", h.Timeout)
	}
	return fmt.Errorf("running hook: %w", err)
}

// Pauses after reports that fail.
const (
	firstReportPause = time.Second
	lastReportPause  = 5 * time.Minute
)

// reportOutcomes reports to the appliance whether the device has acted on approvals, also in
// earlier runs, until ctx is over. The journal keeps an outcome until the appliance has acknowledged it.
func (r *Relay) reportOutcomes(ctx context.Context) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		if r.reportAll(ctx) {
			wait = 0
			select {
			case <-r.unsettled:
			case <-ctx.Done():
			}
			continue
		}
		wait = min(max(2*wait, firstReportPause), lastReportPause)
		r.awaitReport(ctx, wait)
	}
}

// awaitReport waits for d or for a new outcome, which shows that the appliance can be
// reached again.
func (r *Relay) awaitReport(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.unsettled:
	case <-ctx.Done():
	}
}

// reportAll reports whether the appliance has every outcome.
func (r *Relay) reportAll(ctx context.Context) bool {
	for _, o := range r.journal.Unsettled() {
		err := r.client.Outcome(ctx, deviceapi.OutcomeRequest{Transaction: o.Transaction, Performed: o.Performed})
		if err != nil && !r.isFinal(o, err) {
			return false
		}
		if err := r.journal.Settle(o.Transaction); err != nil {
			r.fail(err)
			return false
		}
	}
	return true
}

// isFinal reports whether the appliance refuses an outcome for good. 401 and 403 are not
// final: an administrator may resume the device.
func (r *Relay) isFinal(o journal.Outcome, err error) bool {
	var answer *uplink.StatusError
	if !errors.As(err, &answer) || answer.Status < 400 || answer.Status > 499 {
		return false
	}
	switch answer.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	r.log.Error("outcome refused",
		"transaction", o.Transaction.String(), "performed", o.Performed, "status", answer.Status)
	return true
}
