package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/protocol/enrol"
	"countersign/relay/uplink"
)

func enrolCommand() *cobra.Command {
	var f enrolFlags
	cmd := &cobra.Command{
		Use:   "enrol {--config FILE | --url URL --ca FILE [--state DIR]} [CODE]",
		Short: "Generate this device's key and have it certified",
		Long: `Generate this device's key and have it certified, with an activation code from
"countersignctl device invite". From then on the device trusts the root that the code names.
With --config, address, CA and state directory are those of relayd's configuration.
If the command fails, repeat it with the same code.
` + cli.CodeHelp,
		Example: "  relayd enrol --config relay.toml --code-file code\n" +
			"  relayd enrol --url https://localhost:8443 --ca ca.pem --state other --code-file code",
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.code = cli.AddCodeFlag(cmd)
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file of relayd, in place of the other three")
	cmd.Flags().StringVar(&f.URL, "url", "", "address of the appliance's API, https://HOST:PORT")
	cmd.Flags().StringVar(&f.CAFile, "ca", "", "PEM file with the roots of the appliance's certificate")
	cmd.Flags().StringVar(&f.StateDir, "state", "var", "directory of the device's key, certificate and journal")
	return cmd
}

type enrolFlags struct {
	uplink.EnrolConfig
	config string
	code   *cli.Activation
}

// run completes and checks everything before it asks for the code.
func (f *enrolFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.complete(cmd); err != nil {
		return err
	}
	text, err := f.code.Read(cmd, args)
	if err != nil {
		return err
	}
	if f.Code, err = enrol.ParseTypedCode(text); err != nil {
		return fault.DeviceCode.Of(err)
	}
	return runEnrol(cmd, f.EnrolConfig)
}

func (f *enrolFlags) complete(cmd *cobra.Command) error {
	if f.config != "" {
		return f.configure(cmd)
	}
	if f.URL == "" || f.CAFile == "" {
		return fault.NoAppliance.Error()
	}
	return fault.NotHTTPS.Of(config.CheckOrigin(f.URL))
}

// configure takes everything from the configuration. A flag that says otherwise is an error: relayd serve would look
// elsewhere.
func (f *enrolFlags) configure(cmd *cobra.Command) error {
	c, err := config.LoadRelay(f.config)
	if err != nil {
		return err
	}
	for _, o := range []struct {
		flag, key string
		value     *string
		want      string
		same      func(a, b string) bool
	}{
		{"url", "appliance.url", &f.URL, c.Appliance.URL, sameURL},
		{"ca", "appliance.ca", &f.CAFile, c.Appliance.CA, samePath},
		{"state", "state_dir", &f.StateDir, c.StateDir, samePath},
	} {
		if cmd.Flags().Changed(o.flag) && !o.same(*o.value, o.want) {
			return fault.FlagContradictsFile.With("flag", o.flag, "given", strconv.Quote(*o.value),
				"key", o.key, "file", f.config, "wanted", strconv.Quote(o.want)).Error()
		}
		*o.value = o.want
	}
	return nil
}

func sameURL(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

func runEnrol(cmd *cobra.Command, c uplink.EnrolConfig) error {
	identity, err := uplink.Enrol(cmd.Context(), c)
	if err != nil {
		return failure(err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "enrolled %s, device %s, certificate until %s\n",
		cli.Printable(identity.Name), identity.ID, identity.NotAfter.UTC().Format("2006-01-02 15:04 UTC"))
	return fault.Output.Of(err)
}
