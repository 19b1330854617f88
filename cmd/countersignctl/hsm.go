package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/cmd/internal/cli"
	"countersign/cmd/internal/config"
	"countersign/hsm/worker"
)

func (t *tool) hsm() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Look after the HSM"}
	cmd.AddCommand(
		t.hsmStatus(),
		t.hsmUnlock(),
		t.hsmDrain("drain", "Let a token finish what it does and give it no more, for its maintenance"),
		t.hsmDrain("resume", "Give a drained token calls again"),
	)
	return cmd
}

// hsmStatus prints one line a worker, and ends with 69 when no token is ready.
func (t *tool) hsmStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show every token and worker process",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := t.api()
			if err != nil {
				return err
			}
			var tokens []admin.Token
			if err := a.get(cmd.Context(), "hsm", &tokens); err != nil {
				return err
			}
			if err := t.printTokens(cmd, tokens); err != nil {
				return err
			}
			return usable(tokens)
		},
	}
}

func (t *tool) printTokens(cmd *cobra.Command, tokens []admin.Token) error {
	p := t.printer(cmd)
	if p.Format != cli.FormatTable {
		return cli.Table[admin.Token]{}.List(p, tokens)
	}
	var rows []workerRow
	for _, token := range tokens {
		for _, w := range token.Workers {
			rows = append(rows, workerRow{token, w})
		}
		if len(token.Workers) == 0 {
			rows = append(rows, workerRow{Token: token})
		}
	}
	return workerTable.List(p, rows)
}

// usable is nil when a token answers.
func usable(tokens []admin.Token) error {
	var reasons []string
	for _, token := range tokens {
		if token.State == "ready" || token.State == "degraded" {
			return nil
		}
		reasons = append(reasons, token.Name+": "+token.Reason)
	}
	hint := "the log of countersignd tells more"
	if len(tokens) > 0 && (tokens[0].State == "locked" || tokens[0].State == "pin-refused") {
		hint = "run countersignctl hsm unlock"
	}
	return cli.Fail(cli.Unavailable, errors.New(strings.Join(reasons, "; ")), hint)
}

// hsmDrain is a verb that changes whether a token takes calls.
func (t *tool) hsmDrain(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " TOKEN", Args: cobra.ExactArgs(1), Short: short,
		Long: short + ".\nTOKEN is first or second, as countersignctl hsm status calls it. A restart of the daemon gives a drained token calls again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := t.api()
			if err != nil {
				return err
			}
			var tokens []admin.Token
			if err := a.post(cmd.Context(), "hsm/"+url.PathEscape(args[0])+"/"+verb, struct{}{}, &tokens); err != nil {
				return err
			}
			return t.printTokens(cmd, tokens)
		},
	}
}

// workerRow is a worker with its token, or a token without one.
type workerRow struct {
	admin.Token
	Worker admin.Worker
}

var workerTable = cli.Table[workerRow]{
	{Title: "Token", Value: func(r workerRow) string { return r.Name }},
	{Title: "Label", Value: func(r workerRow) string { return r.Label }},
	{Title: "State", Value: func(r workerRow) string {
		if r.Drained {
			return r.State + ", drained"
		}
		return r.State
	}},
	{Title: "Worker", Value: r1(func(w admin.Worker) string { return strconv.Itoa(w.PID) })},
	{Title: "Is", Value: r1(func(w admin.Worker) string { return w.State })},
	{Title: "Since", Value: r1(func(w admin.Worker) string { return date(w.Started) })},
	{Title: "Calls", Value: r1(func(w admin.Worker) string { return number(w.Calls) })},
	{Title: "In flight", Value: r1(func(w admin.Worker) string { return fmt.Sprintf("%d of %d", w.InFlight, w.Most) })},
	{Title: "Call", Value: r1(func(w admin.Worker) string { return fmt.Sprintf("%.0f µs", w.CallUS) })},
	{Title: "Wrong", Value: r1(func(w admin.Worker) string { return strconv.Itoa(w.Wrong) })},
	{Title: "Proven", Value: r1(func(w admin.Worker) string { return optionalDate(w.Proven) })},
}

// r1 is a column that a token without workers leaves empty.
func r1(value func(admin.Worker) string) func(workerRow) string {
	return func(r workerRow) string {
		if r.Worker.PID == 0 {
			return "-"
		}
		return value(r.Worker)
	}
}

// unlocking is what hsm unlock is told.
type unlocking struct {
	token, file, stateDir string
	fd                    int
}

func (t *tool) hsmUnlock() *cobra.Command {
	var u unlocking
	cmd := &cobra.Command{
		Use: "unlock", Args: cobra.NoArgs, Short: "Give the PIN to a daemon that waits for it, or let a refused one be tried again",
		Long: "Give the PIN to a daemon that was started without one, or whose PIN the token refused; it is tried once.\n" +
			"When no daemon runs, lift the guard that a refused PIN left in its state directory: the next start tries hsm.pin once.",
		RunE: func(cmd *cobra.Command, _ []string) error { return t.unlock(cmd, u) },
	}
	cmd.Flags().StringVar(&u.token, "token", "", "name of the token, when there are several")
	cmd.Flags().StringVar(&u.file, "pin-file", "", "file of mode 0600 with the PIN, in place of a prompt")
	cmd.Flags().IntVar(&u.fd, "pin-fd", -1, "file descriptor with the PIN, in place of a prompt")
	cmd.Flags().StringVar(&u.stateDir, "state-dir", "", "state_dir of a daemon that does not run (default the directory of --admin)")
	return cmd
}

func (t *tool) unlock(cmd *cobra.Command, u unlocking) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var tokens []admin.Token
	err = a.get(cmd.Context(), "hsm", &tokens)
	if nobodyAnswers(err) {
		return t.liftGuard(cmd, u)
	}
	if err != nil {
		return err
	}
	if !slicesNeedPIN(tokens, u.token) {
		return cli.Fail(cli.Failed, errors.New("no token waits for a PIN"), "countersignctl hsm status tells their states")
	}
	pin, err := u.readPIN(cmd)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	if err := a.unlock(cmd.Context(), u.token, pin.Bytes(), &tokens); err != nil {
		return err
	}
	return t.printTokens(cmd, tokens)
}

func slicesNeedPIN(tokens []admin.Token, name string) bool {
	for _, token := range tokens {
		if (name == "" || name == token.Name) && (token.State == "locked" || token.State == "pin-refused") {
			return true
		}
	}
	return false
}

// nobodyAnswers tells that there is no daemon at the socket, from every other error.
func nobodyAnswers(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

func (u unlocking) readPIN(cmd *cobra.Command) (config.SecretValue, error) {
	secret := config.Secret{Source: "prompt"}
	switch {
	case u.file != "":
		secret = config.Secret{Source: "file", Path: u.file}
	case u.fd >= 0:
		secret = config.Secret{Source: "fd", FD: &u.fd}
	}
	return secret.Resolve(config.SecretSources{What: "PIN of the token", Prompt: cli.TerminalOf(cmd).Secret})
}

// unlock sends the PIN as it is, so that no copy of it is made on the way.
func (a *api) unlock(ctx context.Context, token string, pin []byte, into any) error {
	return a.do(ctx, http.MethodPost, "hsm/unlock?token="+url.QueryEscape(token), bytes.NewReader(pin), into)
}

// liftGuard lets the next start of a daemon try its PIN.
func (t *tool) liftGuard(cmd *cobra.Command, u unlocking) error {
	dir := u.stateDir
	if dir == "" {
		address, err := config.ParseAddress(t.address)
		if err != nil || address.Network() != "unix" {
			return cli.Fail(cli.Usage, errors.New("no daemon answers, and where its state is was not said"), "name it: --state-dir DIR")
		}
		dir = filepath.Dir(address.Target())
	}
	guard := worker.Guard(filepath.Join(dir, worker.GuardFile))
	when, refused := guard.Refused()
	if !refused {
		return cli.Fail(cli.Failed, fmt.Errorf("no daemon answers at %s, and in %s no PIN was refused", t.address, dir),
			"start countersignd, or name its state directory: --state-dir DIR")
	}
	if err := guard.Lift(); err != nil {
		code := cli.IO
		if errors.Is(err, fs.ErrPermission) {
			code = cli.Auth
		}
		return cli.Fail(code, err, "run it as the user of countersignd")
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "The guard of %s is lifted: the next start of countersignd tries hsm.pin once. A wrong one counts on the token.\n",
		when.UTC().Format(time.RFC3339))
	return err
}
