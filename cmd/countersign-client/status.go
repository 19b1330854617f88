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
	"countersign/internal/fault"
	"countersign/protocol"
)

// status is the output form of [client.Status].
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
		Short: "Show the enrolment or the outcome of an authorization",
		Long: "status alone shows the enrolment and any pending authorization. With a serial or --last it shows that authorization\n" +
			"as known here; with --link it also asks the appliance, through a device, for the outcome and whether the device that\n" +
			"was approved has acted, and keeps the answer.\n" +
			"This permanently denies an authorization that the appliance never saw: resume it first to complete it.\n\n" +
			"Exit codes with --link: 0 approved, performed or not, 3 denied, 75 still awaiting a second approver, otherwise as\n" +
			"authorize.",
		Example: "  countersign-client status --last --link tcp:127.0.0.1:7443",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.status(cmd, f, args) },
	}
	cmd.Flags().StringVar(&f.link, "link", "", "near-field link of the device to ask through: tcp:HOST:PORT or unix:PATH")
	cmd.Flags().BoolVar(&f.last, "last", false, "the newest authorization")
	f.password = addPasswordFlags(cmd)
	return cmd
}

func (a *app) status(cmd *cobra.Command, f statusFlags, args []string) error {
	one := len(args) != 0 || f.last
	switch {
	case len(args) != 0 && f.last:
		return fault.SerialAndLast.Error()
	case f.link != "" && !one:
		return fault.LinkNeedsOne.Error()
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

// receiptOf returns the receipt of the serial in args, or the newest.
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
		return client.Receipt{}, fault.BadSerial.Of(err)
	}
	r, err := c.Receipt(serial)
	return r, explain(err)
}

// settle asks the appliance for an outcome. It needs no approval by the user, because it changes
// only what the user asked for.
func (a *app) settle(cmd *cobra.Command, f statusFlags, args []string) (err error) {
	if _, err := parseLink(f.link); err != nil {
		return fault.PhoneFlags.With("command", "countersign-client status").Of(err)
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
	if !r.Settled() {
		known := r.Final()
		err = onLink(cmd.Context(), f.link, func(l client.Link) (err error) {
			r, err = c.Settle(cmd.Context(), l, r.Serial, ask)
			return err
		})
		if known {
			err = warnUnreported(cmd, err)
		}
	}
	err = a.report(cmd, c, r, untold(err))
	var e *fault.Error
	if r.Known && r.Result == protocol.ResultDenied && errors.As(err, &e) && e.Code == fault.TryAgain {
		e.Code = fault.Denied // permanent, for any reason
	}
	return err
}

// warnUnreported prints why the appliance did not say whether the device acted on an approval, which stands in any
// case.
func warnUnreported(cmd *cobra.Command, err error) error {
	if err == nil || errors.Is(err, client.ErrContradicted) || cmd.Context().Err() != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warning: it was approved; whether the device acted is not known: %s\n",
		cli.Printable(err.Error()))
	return nil
}

// untold keeps a refusal to reveal an outcome from looking like a denial.
func untold(err error) error {
	var e *fault.Error
	if err = explain(err); errors.As(err, &e) && e.Code == fault.Denied {
		return fault.OutcomeHidden.Of(err)
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
		Short: "Continue an authorization that has no final answer",
		Long: "resume repeats a countersignature that may already have left, byte for byte. The appliance repeats its result and\n" +
			"does nothing twice. After a wrong password resume asks for another. It works until the challenge expires; use\n" +
			"status afterwards.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.resume(cmd, f) },
	}
	addLinkFlag(cmd, &f.link)
	cmd.Flags().BoolVar(&f.yes, "yes", false, "skip verifying the user when the UV key signs")
	f.password = addPasswordFlags(cmd)
	return cmd
}

func (a *app) resume(cmd *cobra.Command, f resumeFlags) (err error) {
	if _, err := parseLink(f.link); err != nil {
		return fault.PhoneFlags.With("command", "countersign-client resume").Of(err)
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

// settleEarlier resumes an authorization of unknown outcome before a new one, so that the user
// learns its outcome and repeats it only if necessary. It fails if the device or the appliance is
// unreachable. If they do not know the outcome it continues, and the receipt stays unknown. It
// leaves an authorization that awaits another password, which had no effect.
func settleEarlier(cmd *cobra.Command, c *client.Client, address string) error {
	pending, ok := c.Pending()
	if !ok {
		return nil
	}
	if pending.Known {
		fmt.Fprintf(cmd.ErrOrStderr(), "giving up the open authorization %v (%s): its password was wrong\n",
			pending.Serial, cli.Printable(c.Name(pending.Service)))
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "settling the open authorization %v (%s)\n", pending.Serial, cli.Printable(c.Name(pending.Service)))
	r, err := resumeOn(cmd.Context(), c, address)
	var out *fault.Error
	code, _ := protocol.CodeOf(err)
	switch {
	case err == nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "it was %v\n", outcomeOf(c, r).Result)
		return nil
	case errors.As(err, &out), rowOf(code).Exit == fault.Unavailable, code == protocol.CodeLinkBusy, cmd.Context().Err() != nil:
		return explain(err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warning: it may have been carried out: %s\n", cli.Printable(err.Error()))
	return nil
}
