package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/protocol"
)

// status is [client.Status] as data.
type status struct {
	ClientID   string   `json:"client_id"`
	URL        string   `json:"url"`
	EnrolledAt string   `json:"enrolled_at"`
	Factors    string   `json:"factors"`
	Root       string   `json:"root"`
	RootNumber uint64   `json:"root_number"`
	KEMEpoch   uint64   `json:"kem_epoch"`
	KEMUntil   string   `json:"kem_until"`
	Counter    uint32   `json:"counter"`
	Pending    *outcome `json:"pending,omitempty"`
}

func statusOf(c *client.Client, s client.Status) status {
	out := status{
		ClientID: s.Client.String(), URL: s.URL, EnrolledAt: s.EnrolledAt.Format(time.RFC3339), Factors: s.Factors.String(),
		Root: s.Root.String(), RootNumber: s.RootNumber, KEMEpoch: s.KEMEpoch, KEMUntil: s.KEMUntil.Format(time.RFC3339),
		Counter: s.Counter,
	}
	if s.Pending != nil {
		o := outcomeOf(c, *s.Pending)
		out.Pending = &o
	}
	return out
}

var statusTable = cli.Table[status]{
	{Title: "client", Value: func(s status) string { return s.ClientID }},
	{Title: "appliance", Value: func(s status) string { return s.URL }},
	{Title: "enrolled", Value: func(s status) string { return s.EnrolledAt }},
	{Title: "factors", Value: func(s status) string { return s.Factors }},
	{Title: "root", Value: func(s status) string { return fmt.Sprintf("%s (number %d)", s.Root, s.RootNumber) }},
	{Title: "kem", Value: func(s status) string { return fmt.Sprintf("epoch %d until %s", s.KEMEpoch, s.KEMUntil) }},
	{Title: "counter", Value: func(s status) string { return strconv.Itoa(int(s.Counter)) }},
	{Title: "pending", Value: func(s status) string {
		if s.Pending == nil {
			return "none"
		}
		return s.Pending.Serial + ": resume it"
	}},
}

type statusFlags struct {
	link     string
	last     bool
	password *passwordFlags
}

func (a *app) statusCommand() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status [SERIAL | --last] [--link LINK]",
		Short: "Show the enrolment, or what became of an authorization",
		Long: "status alone shows the enrolment and what is pending. With a serial, or --last, it shows that authorization as it is\n" +
			"known here; with --link too it asks the appliance, through a device, what became of it, and keeps the answer.\n" +
			"An authorization that the appliance never saw is denied by that for good: resume it first if it is to go on.\n\n" +
			"Exit codes with --link: 0 approved, 3 denied, 75 still awaiting a second approver, otherwise as authorize.",
		Example: "  countersign-client status --last --link tcp:127.0.0.1:7777",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.status(cmd, f, args) },
	}
	cmd.Flags().StringVar(&f.link, "link", "", "near-field link of the device to ask through: tcp:HOST:PORT or unix:PATH")
	cmd.Flags().BoolVar(&f.last, "last", false, "the newest authorization")
	f.password = addPasswordFlags(cmd)
	return cmd
}

func (a *app) status(cmd *cobra.Command, f statusFlags, args []string) error {
	const hint = "see countersign-client status --help"
	one := len(args) != 0 || f.last
	switch {
	case len(args) != 0 && f.last:
		return cli.Fail(cli.Usage, errors.New("a serial and --last name two authorizations"), hint)
	case f.link != "" && !one:
		return cli.Fail(cli.Usage, errors.New("--link asks about one authorization"), "name its serial, or give --last")
	case f.link != "":
		return a.settle(cmd, f, args)
	}
	c, err := a.open(cmd.Context(), client.Config{ReadOnly: true})
	if err != nil {
		return err
	}
	if one {
		r, err := receiptOf(c, args)
		if err != nil {
			return err
		}
		return outcomeTable.One(a.printer(cmd), outcomeOf(c, r))
	}
	s, err := c.Status()
	if err != nil {
		return explain(err)
	}
	return statusTable.One(a.printer(cmd), statusOf(c, s))
}

// receiptOf finds the receipt of a serial in args, or the newest.
func receiptOf(c *client.Client, args []string) (client.Receipt, error) {
	if len(args) == 0 {
		serial, err := c.Last()
		if err != nil {
			return client.Receipt{}, explain(err)
		}
		r, err := c.Receipt(serial)
		return r, explain(err)
	}
	serial, err := protocol.ParseSerial(args[0])
	if err != nil {
		return client.Receipt{}, cli.Fail(cli.Usage, err, "countersign-client receipts lists the serials")
	}
	r, err := c.Receipt(serial)
	return r, explain(err)
}

// settle asks the appliance. Nobody is asked to approve that: it changes nothing that
// the user has not asked for.
func (a *app) settle(cmd *cobra.Command, f statusFlags, args []string) (err error) {
	if _, err := parseLink(f.link); err != nil {
		return cli.Fail(cli.Usage, err, "see countersign-client status --help")
	}
	yes := protocol.Approve
	ask := approver{terminal: cli.TerminalOf(cmd), said: &yes}
	c, err := a.open(cmd.Context(), client.Config{Passwords: &passwords{cmd: cmd, flags: f.password}, Verifier: ask})
	if err != nil {
		return err
	}
	defer closing(c, &err)
	r, err := receiptOf(c, args)
	if err != nil {
		return err
	}
	if pending, ok := c.Pending(); ok && pending.Serial != r.Serial {
		if err := settleEarlier(cmd, c, f.link); err != nil {
			return err
		}
	}
	if !r.Final() {
		err = onLink(cmd.Context(), f.link, func(l client.Link) (err error) {
			r, err = c.Settle(cmd.Context(), l, r.Serial, ask)
			return err
		})
	}
	err = a.report(cmd, c, r, untold(err))
	var e *cli.Error
	if r.Known && r.Result == protocol.ResultDenied && errors.As(err, &e) && e.Code == cli.TryAgain {
		e.Code = cli.Denied // for good, whatever the reason
	}
	return err
}

// untold keeps a refusal to tell what became of an authorization from looking like
// its denial.
func untold(err error) error {
	var e *cli.Error
	if err = explain(err); errors.As(err, &e) && e.Code == cli.Denied {
		return cli.Fail(cli.TryAgain, fmt.Errorf("its outcome is not told: %w", err), e.Advice)
	}
	return err
}

type resumeFlags struct {
	link     string
	yes      bool
	password *passwordFlags
}

func (a *app) resumeCommand() *cobra.Command {
	var f resumeFlags
	cmd := &cobra.Command{
		Use:   "resume --link LINK",
		Short: "Go on with an authorization that has no final answer yet",
		Long: "resume sends the countersignature that may have left already once more, byte for byte. The appliance answers\n" +
			"with the same result, and nothing is done twice. After a wrong password it asks for another one. It works until\n" +
			"the time of the challenge is over; later status tells what became of it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.resume(cmd, f) },
	}
	addLinkFlag(cmd, &f.link)
	cmd.Flags().BoolVar(&f.yes, "yes", false, "count as verified as the user, where another password is signed with the UV key")
	f.password = addPasswordFlags(cmd)
	return cmd
}

func (a *app) resume(cmd *cobra.Command, f resumeFlags) (err error) {
	if _, err := parseLink(f.link); err != nil {
		return cli.Fail(cli.Usage, err, "see countersign-client resume --help")
	}
	verify := approver{terminal: cli.TerminalOf(cmd)}
	if yes := protocol.Approve; f.yes {
		verify.said = &yes
	}
	c, err := a.open(cmd.Context(), client.Config{Passwords: &passwords{cmd: cmd, flags: f.password}, Verifier: verify})
	if err != nil {
		return err
	}
	defer closing(c, &err)
	if _, ok := c.Pending(); !ok {
		return explain(client.ErrNothingPending)
	}
	r, err := resumeOn(cmd.Context(), c, f.link)
	return a.report(cmd, c, r, err)
}

func resumeOn(ctx context.Context, c *client.Client, address string) (r client.Receipt, err error) {
	err = onLink(ctx, address, func(l client.Link) (err error) {
		r, err = c.Resume(ctx, l)
		return err
	})
	return r, err
}

// settleEarlier resumes an authorization of unknown outcome before a new one, so
// that its user learns what became of it and asks twice only if need be. Where the
// device or the appliance is out of reach it stops; where they cannot tell it goes
// on, and the receipt stays unknown. One that awaits another password is left: nothing
// came of it.
func settleEarlier(cmd *cobra.Command, c *client.Client, address string) error {
	pending, ok := c.Pending()
	if !ok {
		return nil
	}
	if pending.Known {
		fmt.Fprintf(cmd.ErrOrStderr(), "the authorization %v (%s) left open before is given up: its password was wrong\n",
			pending.Serial, c.Name(pending.Service))
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "settling the authorization %v (%s) left open before\n", pending.Serial, c.Name(pending.Service))
	r, err := resumeOn(cmd.Context(), c, address)
	var out *cli.Error
	code, _ := protocol.CodeOf(err)
	switch {
	case err == nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "it was %v\n", outcomeOf(c, r).Result)
		return nil
	case errors.As(err, &out), exitOf(code) == cli.Unavailable, code == protocol.CodeLinkBusy, cmd.Context().Err() != nil:
		return explain(err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warning: it may have been carried out: %v\n", err)
	return nil
}
