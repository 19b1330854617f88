package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
)

// hsm returns the commands for tokens and their modules.
func (t *tool) hsm() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Manage the HSM: state, PIN, capabilities, speed, and the URI of the token"}
	cmd.AddCommand(
		t.hsmStatus(),
		t.hsmUnlock(),
		t.hsmDrain("drain", "Let a token finish its calls and give it no more, for maintenance", adminapi.Routes.HSMDrain),
		t.hsmDrain("resume", "Give calls to a drained token again", adminapi.Routes.HSMResume),
		hsmProbe("probe", "Try what a PKCS#11 module can do and what it costs"),
		hsmProbe("bench", "Compare the speed of the service with that of the token"),
		hsmProbe("uri [URI]", "Print the PKCS#11 URI of a token in its one canonical form"),
	)
	return cmd
}

// hsmProbe returns a command of the program hsm-probe. This process becomes hsm-probe,
// which reads the flags, and the PIN if it needs one.
func hsmProbe(use, short string) *cobra.Command {
	become := func(cmd *cobra.Command, args []string) error {
		path, err := beside("hsm-probe")
		if err == nil {
			err = unix.Exec(path, append([]string{path, cmd.Name()}, args...), os.Environ())
		}
		return fault.NoProbe.Of(err)
	}
	cmd := &cobra.Command{Use: use, Short: short, DisableFlagParsing: true, RunE: become}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { _ = become(cmd, []string{"--help"}) })
	return cmd
}

// beside returns the path of a program in the directory of this one.
func beside(program string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", program, err)
	}
	return filepath.Join(filepath.Dir(self), program), nil
}

// hsmStatus prints one line per worker. Exit code 69: no token is ready.
func (t *tool) hsmStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "Show every token and worker process",
		RunE: func(cmd *cobra.Command, _ []string) error {
			tokens, err := send(t, cmd, adminapi.Routes.HSMStatus, adminapi.None{})
			if err != nil {
				return err
			}
			if err := t.printTokens(cmd, tokens); err != nil {
				return err
			}
			return usable(tokens)
		},
	}
}

func (t *tool) printTokens(cmd *cobra.Command, tokens []adminapi.Token) error {
	p := t.printer(cmd)
	if p.Format != cli.FormatTable {
		return cli.Table[adminapi.Token]{}.List(p, tokens)
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
	if err := workerTable.List(p, rows); err != nil {
		return err
	}
	return printReasons(p, tokens)
}

// printReasons prints below the table how the module of a token is used, which keys it lacks, and why
// it does not serve.
func printReasons(p cli.Printer, tokens []adminapi.Token) error {
	for _, token := range tokens {
		for _, way := range token.Ways {
			if _, err := fmt.Fprintf(p.Out, "token %s, %s\n", cli.Printable(token.Name), cli.Printable(way)); err != nil {
				return err
			}
		}
		if len(token.Lacks) > 0 {
			lacks := strings.Join(token.Lacks, ", ")
			if _, err := fmt.Fprintf(p.Out, "token %s lacks %s\n", cli.Printable(token.Name), cli.Printable(lacks)); err != nil {
				return err
			}
		}
		if token.Serves() || token.Reason == "" {
			continue
		}
		_, err := fmt.Fprintf(p.Out, "token %s is %s: %s\n",
			cli.Printable(token.Name), token.State, cli.Printable(token.Reason))
		if err != nil {
			return err
		}
	}
	return nil
}

// usable returns nil if a token answers.
func usable(tokens []adminapi.Token) error {
	var reasons []string
	for _, token := range tokens {
		if token.Serves() {
			return nil
		}
		reasons = append(reasons, token.Name+": "+token.Reason)
	}
	all := strings.Join(reasons, "; ")
	if slices.ContainsFunc(tokens, func(t adminapi.Token) bool { return t.NeedsPIN }) {
		return fault.TokensNeedPIN.With("reasons", all).Error()
	}
	return fault.NoTokenServes.With("reasons", all).Error()
}

// hsmDrain returns a command that stops or resumes calls to a token.
func (t *tool) hsmDrain(verb, short string, route adminapi.Route[adminapi.None, []adminapi.Token]) *cobra.Command {
	return &cobra.Command{
		Use: verb + " TOKEN", Args: cobra.ExactArgs(1), Short: short,
		Long: short + ".\nTOKEN is first or second, as in countersignctl hsm status. After a restart of the daemon a drained token gets calls again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			tokens, err := send(t, cmd, route, adminapi.None{}, args...)
			if err != nil {
				return err
			}
			return t.printTokens(cmd, tokens)
		},
	}
}

// workerRow is a worker with its token, or a token without workers.
type workerRow struct {
	adminapi.Token
	Worker adminapi.Worker
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
	{Title: "Keys in use", Value: func(r workerRow) string {
		if r.Lacks == nil {
			return "-"
		}
		return fmt.Sprintf("%d of %d", r.Keys, r.Keys+len(r.Lacks))
	}},
	{Title: "Worker", Value: r1(func(w adminapi.Worker) string { return strconv.Itoa(w.PID) })},
	{Title: "Worker state", Value: r1(func(w adminapi.Worker) string { return w.State })},
	{Title: "Since", Value: r1(func(w adminapi.Worker) string { return date(w.Started) })},
	{Title: "Calls", Value: r1(func(w adminapi.Worker) string { return number(w.Calls) })},
	{Title: "In progress", Value: r1(func(w adminapi.Worker) string { return fmt.Sprintf("%d of %d", w.InFlight, w.Most) })},
	{Title: "Time per call", Value: r1(func(w adminapi.Worker) string { return fmt.Sprintf("%.0f µs", w.CallUS) })},
	{Title: "Errors in a row", Value: r1(func(w adminapi.Worker) string { return strconv.Itoa(w.Wrong) })},
	{Title: "Last check", Value: r1(func(w adminapi.Worker) string { return optionalDate(w.Proven) })},
}

// r1 is a column that is empty for a token without workers.
func r1(value func(adminapi.Worker) string) func(workerRow) string {
	return func(r workerRow) string {
		if r.Worker.PID == 0 {
			return "-"
		}
		return value(r.Worker)
	}
}
