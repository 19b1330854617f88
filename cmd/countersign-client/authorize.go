package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/fault"
	"countersign/protocol"
	"countersign/protocol/message"
	"countersign/relay/link"
)

type authorizeFlags struct {
	link, service, level, amount, currency, text string
	yes, refuse, receipt                         bool
	password                                     *passwordFlags
}

const exitCodesHelp = "Exit codes: 0 approved, 3 denied or refused, 4 not authentic, 5 not enrolled, 69 device or appliance\n" +
	"unavailable, 75 try again (a wrong password with tries left: see resume), awaiting a second approver, or the\n" +
	"outcome is unknown: see resume and status; 77 no password could be read."

func (a *app) authorizeCommand() *cobra.Command {
	var f authorizeFlags
	cmd := &cobra.Command{
		Use:   "authorize --link LINK --service SERVICE",
		Short: "Request an operation at a device and countersign it",
		Long: "authorize shows the device, the service, the amount and the device's text, asks, signs the answer (also a\n" +
			"refusal), and prints the result. At level 2 and above it asks for the password, at level 3 and above it verifies\n" +
			"the user (--yes counts). It first settles an earlier authorization of unknown outcome.\n\n" + exitCodesHelp,
		Example: "  countersign-client authorize --link tcp:127.0.0.1:7443 --service door.open=100\n" +
			`  countersign-client authorize --link tcp:127.0.0.1:7443 --service 200 --amount "12.00 EUR" --yes -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.authorize(cmd, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.service, "service", "", "service number, NAME=NUMBER to name it, or that name")
	flags.BoolVar(&f.receipt, "receipt", false, "request and keep the full receipt")
	_ = cmd.MarkFlagRequired("service") // it was defined above
	f.addContent(cmd)
	f.addAnswer(cmd)
	return cmd
}

func (a *app) approveCommand() *cobra.Command {
	f := authorizeFlags{service: protocol.ServiceCoApproval.String(), level: "1"}
	cmd := &cobra.Command{
		Use:   "approve --link LINK",
		Short: "Approve another client's request at the device as the second person",
		Long: "approve shows the request that awaits a second approver at the device, asks, and signs the answer; a refusal ends\n" +
			"it. The appliance accepts only a different client with the role that the policy requires.\n\n" + exitCodesHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.authorize(cmd, f) },
	}
	cmd.Flags().BoolVar(&f.receipt, "receipt", false, "request and keep the full receipt")
	f.addAnswer(cmd)
	return cmd
}

func (a *app) dryRunCommand() *cobra.Command {
	f := authorizeFlags{service: protocol.ServiceDryRun.String()}
	cmd := &cobra.Command{
		Use:   "dry-run --link LINK",
		Short: "Run an authorization without any effect",
		Long: "dry-run does the same as authorize, through device and appliance, but charges, decides and does nothing, and keeps\n" +
			"no receipt.\n\n" + exitCodesHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.authorize(cmd, f) },
	}
	f.addContent(cmd)
	f.addAnswer(cmd)
	return cmd
}

// addContent adds the flags of the request.
func (f *authorizeFlags) addContent(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.level, "level", "1", "lowest acceptable level (1–4)")
	flags.StringVar(&f.amount, "amount", "", `amount you propose, such as "12.00 EUR"`)
	flags.StringVar(&f.currency, "currency", "", "currency of --amount, if the amount has none")
	flags.StringVar(&f.text, "text", "", "text you propose (at most 44 bytes)")
}

// addAnswer adds the flags of the link and the user's answer.
func (f *authorizeFlags) addAnswer(cmd *cobra.Command) {
	addLinkFlag(cmd, &f.link)
	cmd.Flags().BoolVar(&f.yes, "yes", false, "approve without asking")
	cmd.Flags().BoolVar(&f.refuse, "refuse", false, "refuse without asking; the refusal is signed")
	cmd.MarkFlagsMutuallyExclusive("yes", "refuse")
	f.password = addPasswordFlags(cmd)
}

func addLinkFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "link", "", "near-field link of the device: tcp:HOST:PORT or unix:PATH")
	_ = cmd.MarkFlagRequired("link") // it was defined above
}

func (a *app) authorize(cmd *cobra.Command, f authorizeFlags) (err error) {
	ask, err := newApprover(cmd, f.yes, f.refuse)
	if err != nil {
		return err
	}
	req, err := f.request()
	if err != nil {
		return fault.PhoneFlags.With("command", cmd.CommandPath()).Of(err)
	}
	ctx := cmd.Context()
	c, err := a.open(ctx, client.Config{Passwords: &passwords{cmd: cmd, flags: f.password}, Verifier: ask})
	if err != nil {
		return err
	}
	defer closing(c, &err)
	if _, err := c.Status(); err != nil {
		return explain(err)
	}
	if req.Service, err = f.number(cmd, c); err != nil {
		return err
	}
	if err := settleEarlier(cmd, c, f.link); err != nil {
		return err
	}
	var r client.Receipt
	err = onLink(ctx, f.link, func(l client.Link) error {
		var err error
		r, err = c.Authorize(ctx, l, req, ask)
		return err
	})
	return a.report(cmd, c, r, err)
}

// number returns the service: from --service, or the command's own.
func (f authorizeFlags) number(cmd *cobra.Command, c *client.Client) (protocol.Service, error) {
	if cmd.Flags().Lookup("service") == nil {
		return protocol.ParseService(f.service)
	}
	return service(c, f.service)
}

func (f authorizeFlags) request() (req client.Request, err error) {
	req = client.Request{Text: f.text, Receipt: f.receipt}
	if req.Level, err = protocol.ParseLevel(f.level); err != nil {
		return req, err
	}
	if f.amount != "" || f.currency != "" {
		if req.Amount, err = parseAmount(f.amount, f.currency); err != nil {
			return req, err
		}
	}
	if err := message.CheckText(f.text, message.MaxTextBytes); f.text != "" && err != nil {
		return req, err
	}
	_, err = parseLink(f.link)
	return req, err
}

// service returns a service by number, by NAME=NUMBER, which stores the name, or by a stored name.
func service(c *client.Client, s string) (protocol.Service, error) {
	if known, ok := c.ServiceNamed(s); ok {
		return known, nil
	}
	name, number, named := strings.Cut(s, "=")
	if !named {
		number = s
	}
	n, err := protocol.ParseService(number)
	switch {
	case err != nil && !named:
		return 0, fault.NoServiceNamed.With("name", strconv.Quote(s)).Error()
	case err != nil:
		return 0, fault.BadService.Of(err)
	case n < protocol.FirstService:
		return 0, fault.ReservedService.With("number", n.String(), "first", protocol.FirstService.String()).Error()
	case named:
		if err := message.CheckText(name, message.MaxNameBytes); err != nil || name == "" {
			return 0, fault.BadServiceName.With("name", strconv.Quote(name)).Error()
		}
		return n, explain(c.SetName(n, name))
	}
	return n, nil
}

func parseLink(address string) (string, error) {
	if !strings.HasPrefix(address, "tcp:") && !strings.HasPrefix(address, "unix:") {
		return "", fmt.Errorf("link %q is not tcp:HOST:PORT or unix:PATH", address)
	}
	return address, nil
}

// onLink runs one exchange on a new link and closes it, at the latest when ctx ends.
func onLink(ctx context.Context, address string, run func(client.Link) error) error {
	conn, err := link.Dial(ctx, address)
	if err != nil {
		return fault.NoDevice.Of(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }() // the exchange is over
	return run(conn)
}

// closing closes the state. Its error becomes the command's error if there is no other.
func closing(c *client.Client, err *error) {
	if closeErr := c.Close(); *err == nil {
		*err = explain(closeErr)
	}
}
