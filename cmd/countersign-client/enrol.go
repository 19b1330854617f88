package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/client"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/protocol/enrol"
)

type enrolFlags struct {
	url            string
	uv, noPassword bool
	code           *cli.Activation
	password       *passwordFlags
}

func (a *app) enrolCommand() *cobra.Command {
	var f enrolFlags
	cmd := &cobra.Command{
		Use:   "enrol --url URL [CODE]",
		Short: "Create a signing key and enrol it with an activation code",
		Long: "enrol creates a signing key and enrols it at the appliance. CODE names the appliance's root key, so that the\n" +
			"client rejects other servers. " + cli.CodeHelp + "\nOn a terminal it asks twice for the offline\n" +
			"password that level 2 and above need; without a terminal or password flag it enrols without a password. After\n" +
			"an interruption run it again: it repeats the request with its keys and password.",
		Example: "  countersign-client enrol --url https://localhost:8443 --code-file code\n" +
			"  countersign-client enrol --url https://localhost:8443 --uv --password-fd 3 3< password < code",
		RunE: func(cmd *cobra.Command, args []string) error { return a.enrol(cmd, f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "address of the appliance: https://HOST:PORT")
	flags.BoolVar(&f.uv, "uv", false, "create a second key, which signs at level 3 and above after verifying the user")
	flags.BoolVar(&f.noPassword, "no-password", false, "set no password; the client can then only refuse at level 2 and above")
	f.code, f.password = cli.AddCodeFlag(cmd), addPasswordFlags(cmd)
	_ = cmd.MarkFlagRequired("url") // it was defined above
	cmd.MarkFlagsMutuallyExclusive("no-password", "password-fd")
	cmd.MarkFlagsMutuallyExclusive("no-password", "password-file")
	return cmd
}

func (a *app) enrol(cmd *cobra.Command, f enrolFlags, args []string) (err error) {
	cfg := client.EnrolConfig{URL: f.url, UV: f.uv}
	if cfg.Code, err = activationCode(cmd, f, args); err != nil {
		return err
	}
	if !strings.HasPrefix(f.url, "https://") {
		return fault.ClientAddress.With("address", strconv.Quote(f.url)).Error()
	}
	c, err := a.open(cmd.Context(), client.Config{})
	if err != nil {
		return err
	}
	defer closing(c, &err)
	if _, err := c.Status(); err == nil {
		return explain(client.ErrEnrolled)
	}
	if waits, withPassword := c.Enrolling(cfg.Code); waits {
		with := map[bool]string{true: "its original password", false: "no password"}[withPassword]
		fmt.Fprintf(cmd.ErrOrStderr(), "repeating the request of an interrupted enrolment, with %s\n", with)
	} else if cfg.Password, err = (&passwords{cmd: cmd, flags: f.password}).newPassword(f.noPassword); err != nil {
		return explain(err)
	}
	defer clear(cfg.Password)
	s, err := c.Enrol(cmd.Context(), cfg)
	if err != nil {
		return explain(err)
	}
	return statusTable.One(a.printer(cmd), statusOf(c, s))
}

// activationCode reads the code. It and the password cannot both come from standard input.
func activationCode(cmd *cobra.Command, f enrolFlags, args []string) (enrol.ActivationCode, error) {
	if f.password.fd == 0 && f.code.FromInput(cmd, args) {
		return enrol.ActivationCode{}, fault.OneDescriptor.Error()
	}
	text, err := f.code.Read(cmd, args)
	if err != nil {
		return enrol.ActivationCode{}, err
	}
	code, err := enrol.ParseTypedCode(text)
	return code, fault.ClientCode.Of(err)
}
