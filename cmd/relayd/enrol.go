package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/protocol"
	"countersign/protocol/enrol"
	"countersign/relay/uplink"
)

func enrolCommand() *cobra.Command {
	var c uplink.EnrolConfig
	var code *cli.Activation
	cmd := &cobra.Command{
		Use:   "enrol --url URL --ca FILE [CODE]",
		Short: "Generate this device's key and have it certified",
		Long: `Generate this device's key and have it certified, with an activation code from
"countersignctl device invite". From then on the device trusts the root that the code names.
If the command fails, repeat it with the same code.
` + cli.CodeHelp,
		Example: "  relayd enrol --url https://appliance:8443 --ca ca.pem --code-file code",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := code.Read(cmd, args)
			if err != nil {
				return err
			}
			if c.Code, err = enrol.ParseTypedCode(text); err != nil {
				return cli.Fail(cli.Usage, err, "copy the whole code that countersignctl device invite printed")
			}
			return runEnrol(cmd, c)
		},
	}
	code = cli.AddCodeFlag(cmd)
	cmd.Flags().StringVar(&c.URL, "url", "", "address of the appliance's API, https://HOST:PORT")
	cmd.Flags().StringVar(&c.CAFile, "ca", "", "PEM file with the roots of the appliance's certificate")
	cmd.Flags().StringVar(&c.StateDir, "state", "var", "directory of the device's key, certificate and journal")
	_ = cmd.MarkFlagRequired("url") // both exist
	_ = cmd.MarkFlagRequired("ca")
	return cmd
}

func runEnrol(cmd *cobra.Command, c uplink.EnrolConfig) error {
	identity, err := uplink.Enrol(cmd.Context(), c)
	if err != nil {
		return failure(err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "enrolled %s, device %s, certificate until %s\n",
		cli.Printable(identity.Name), identity.ID, identity.NotAfter.UTC().Format("2006-01-02 15:04 UTC"))
	return cli.Fail(cli.IO, err, "")
}

// failure adds the exit code and hint to an error of the relay.
func failure(err error) error {
	var answer *uplink.StatusError
	code, _ := protocol.CodeOf(err)
	switch {
	case errors.Is(err, uplink.ErrNotEnrolled):
		return cli.Fail(cli.Config, err, "relayd enrol --url URL --ca FILE --state DIR --code-file FILE")
	case errors.Is(err, uplink.ErrEnrolled):
		return cli.Fail(cli.Failed, err, "to enrol another device, use another --state directory")
	case errors.Is(err, uplink.ErrLocked):
		return cli.Fail(cli.TryAgain, err, "stop the other relayd first")
	case code == protocol.CodeServerUnreachable || code == protocol.CodeTimeout:
		return cli.Fail(cli.Unavailable, err, "check --url and --ca, and that the appliance runs")
	case code == protocol.CodeBusy || code == protocol.CodeHSM:
		return cli.Fail(cli.Unavailable, err, "try again later with the same code")
	case errors.As(err, &answer):
		return cli.Fail(cli.Auth, err, "the code may be used or expired: ask for another one")
	case code == protocol.CodeCertificate:
		return cli.Fail(cli.Auth, err, "this is not the appliance that the code is for")
	}
	return err
}
