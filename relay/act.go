package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"countersign/protocol"
	"countersign/protocol/deviceapi"
	"countersign/protocol/receipt"
	"countersign/relay/journal"
)

// Hook is the program that acts on an approval. It gets one line of JSON, an [Act],
// on its standard input; exit code 0 says that the act was performed, any other,
// a signal, or the end of the time that it was not.
type Hook struct {
	Command []string      // program and arguments; empty: nothing is run
	Timeout time.Duration // then it is killed, with the processes it started
	// Stderr gets the standard error of the hook; its standard output is dropped.
	// With an [*os.File] the hook can outlive the relay unharmed.
	Stderr io.Writer
}

// Act is what a hook is told: the decision, and of the order what the decision
// does not have.
type Act struct {
	Transaction protocol.TransactionID `json:"-"`
	Service     protocol.Service       `json:"service"`
	Amount      *ActAmount             `json:"amount"`
	Level       protocol.Level         `json:"level"`
	Factors     []string               `json:"factors"`
	Device      string                 `json:"device"`
	Pairwise    string                 `json:"pairwise"` // the client, as this device alone knows it
	IssuedAt    time.Time              `json:"issued_at"`
	Text        string                 `json:"text,omitempty"`
	Reference   string                 `json:"reference,omitempty"`
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

// MarshalJSON writes the transaction first, as 16 hexadecimal digits.
func (a Act) MarshalJSON() ([]byte, error) {
	type plain Act
	return json.Marshal(struct {
		Transaction string `json:"transaction"`
		plain
	}{a.Transaction.String(), plain(a)})
}

func newAct(d receipt.Decision, o deviceapi.Order) Act {
	return Act{
		Transaction: d.Transaction, Service: d.Service, Amount: amountJSON(d.Amount), Level: d.Level,
		Factors: strings.Split(d.Factors.String(), "+"), Device: d.Device.String(), Pairwise: d.Pairwise.String(),
		IssuedAt: time.Unix(int64(d.IssuedAt), 0).UTC(), Text: o.Text, Reference: o.Reference,
	}
}

// act does what was approved, if nobody has: journal, show, run, journal. The
// phone's answer waits for it, but not longer than ActWait; the act goes on.
func (r *Relay) act(ctx context.Context, s *session, d receipt.Decision) {
	s.leave()
	first, err := r.journal.Begin(journal.Record{Transaction: d.Transaction, Service: d.Service, Amount: d.Amount})
	if err != nil {
		r.log.Error("not acting: the journal cannot be written", "transaction", d.Transaction.String(), "error", err)
		s.ticket.settle(Settlement{Result: ResultFailed, Decision: &d})
		r.fail(err)
		return
	}
	if !first {
		r.log.Info("not acting again", "transaction", d.Transaction.String())
		r.metrics.acts.WithLabelValues("repeated").Inc()
		return
	}
	r.pendings.finish(s.approved(d))
	if !s.ticket.claim() {
		r.log.Warn("not acting: the order was acted on, or is over", "transaction", d.Transaction.String(), "service", uint64(d.Service))
		r.metrics.acts.WithLabelValues("failed").Inc()
		r.finish(s, Settlement{Result: d.Result.String(), Decision: &d})
		return
	}
	r.show(d)
	done := make(chan struct{})
	r.acts.Go(func() {
		defer close(done)
		r.perform(s, d)
	})
	wait := time.NewTimer(r.config.ActWait)
	defer wait.Stop()
	select {
	case <-done:
	case <-wait.C:
	case <-ctx.Done():
	}
}

// show is for whoever stands at the device.
func (r *Relay) show(d receipt.Decision) {
	line := fmt.Sprintf("approved: service %v", d.Service)
	if d.Amount != nil {
		line += ", " + decimal(*d.Amount)
	}
	r.display.Lock()
	defer r.display.Unlock()
	if _, err := fmt.Fprintln(r.config.Display, line); err != nil {
		r.log.Warn("showing an approval failed", "error", err)
	}
}

// decimal writes an amount as people do: 12.50 EUR.
func decimal(a protocol.Amount) string {
	digits, known := protocol.MinorDigits(a.Currency)
	if !known {
		return a.String() + " (minor units)"
	}
	s := fmt.Sprintf("%0*d", digits+1, a.Minor)
	if digits > 0 {
		s = s[:len(s)-digits] + "." + s[len(s)-digits:]
	}
	return s + " " + a.Currency
}

// perform runs the hook and makes its outcome durable.
func (r *Relay) perform(s *session, d receipt.Decision) {
	begun := time.Now()
	err := r.config.Hook.run(newAct(d, s.ticket.order))
	o := Settlement{Result: d.Result.String(), Decision: &d, Performed: err == nil}
	if err == nil {
		r.log.Info("acted", "transaction", d.Transaction.String(), "service", uint64(d.Service), "took", time.Since(begun).String())
		r.metrics.acts.WithLabelValues("done").Inc()
	} else {
		r.log.Error("hook failed", "transaction", d.Transaction.String(), "service", uint64(d.Service), "error", err)
		r.metrics.acts.WithLabelValues("failed").Inc()
	}
	r.finish(s, o)
}

// finish makes the outcome of an approval durable and has it reported.
func (r *Relay) finish(s *session, o Settlement) {
	id := o.Decision.Transaction
	if err := r.journal.Finish(id, o.Performed); err != nil {
		r.log.Error("outcome known, but the journal cannot be written", "transaction", id.String(), "performed", o.Performed, "error", err)
		r.fail(err)
	}
	s.ticket.settle(o)
	r.status.update(o.last())
	select {
	case r.unsettled <- struct{}{}:
	default:
	}
}

// killWait is how long a killed hook's descendants may keep its files open.
const killWait = time.Second

// run runs the program; an error says that the act was not performed.
func (h Hook) run(a Act) error {
	if len(h.Command) == 0 {
		return nil
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	// Not the relay's context: stopping the relay must not stop an act half-way.
	ctx, cancel := context.WithTimeout(context.Background(), h.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Command[0], h.Command[1:]...)
	cmd.Stdin = bytes.NewReader(append(line, '\n'))
	cmd.Stderr = h.Stderr
	// A group of its own: signals from a terminal are not for it, and its end is that
	// of all it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killWait
	err = cmd.Run()
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success():
		return nil // what it left running in the background is its own affair
	case ctx.Err() != nil:
		return fmt.Errorf("running hook: killed after %v", h.Timeout)
	}
	return fmt.Errorf("running hook: %w", err)
}
