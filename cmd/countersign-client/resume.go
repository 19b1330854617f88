package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/cmd/internal/cli"
	"countersign/protocol"
)

func (a *app) resumeCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "resume --link LINK",
		Short: "Find out what became of an authorization whose outcome is unknown",
		Long: "resume sends the countersignature that may have left already once more, byte for byte. The appliance answers\n" +
			"with the same result, and nothing is done twice. It works until the time of the challenge is over.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.resume(cmd, address) },
	}
	addLinkFlag(cmd, &address)
	return cmd
}

func (a *app) resume(cmd *cobra.Command, address string) (err error) {
	if _, err := parseLink(address); err != nil {
		return cli.Fail(cli.Usage, err, "see countersign-client resume --help")
	}
	c, err := a.open(cmd.Context(), false)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	if _, ok := c.Pending(); !ok {
		return explain(client.ErrNothingPending)
	}
	r, err := resumeOn(cmd.Context(), c, address)
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
// on, and the receipt stays unknown.
func settleEarlier(cmd *cobra.Command, c *client.Client, address string) error {
	pending, ok := c.Pending()
	if !ok {
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
