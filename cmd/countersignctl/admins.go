package main

import (
	"encoding/hex"
	"fmt"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/protocol"
)

var adminTable = cli.Table[adminapi.Administrator]{
	{Title: "Name", Value: func(a adminapi.Administrator) string { return a.Name }},
	{Title: "Signer", Value: func(a adminapi.Administrator) string { return a.Signer }},
	{Title: "Status", Value: func(a adminapi.Administrator) string { return a.Status }},
	{Title: "Public key", Value: func(a adminapi.Administrator) string { return a.PublicKey }},
	{Title: "Added", Value: func(a adminapi.Administrator) string { return date(a.CreatedAt) }},
}

func (t *tool) admin() *cobra.Command {
	r := adminapi.Routes
	cmd := &cobra.Command{Use: "admin", Short: "Manage the administrators who countersign changes"}
	cmd.AddCommand(
		t.addAdmin(), t.keygen(),
		verb("list", "List every administrator, and warn of quorums that they cannot meet",
			t.andQuorums(list(t, adminTable, r.AdminList))),
		verb("show NAME", "Show an administrator", show(t, adminTable, r.AdminShow)),
		withDryRun("only show the administrator", show(t, adminTable, r.AdminShow), verb("suspend NAME",
			"Reject an administrator's countersignatures until resume: at once, without a quorum",
			t.andQuorums(show(t, adminTable, r.AdminSuspend)))),
		t.adminStep("resume", "Accept an administrator's countersignatures again after suspend", r.AdminResume),
		confirmed(t.adminStep("revoke", "Revoke an administrator permanently", r.AdminRevoke), func(name string) string {
			return "This will revoke the administrator " + name + " permanently."
		}),
	)
	return cmd
}

// withDryRun gives a command the flag --dry-run, with which it runs dry.
func withDryRun(help string, dry action, cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Bool("dry-run", false, help)
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if isDry(cmd) {
			return dry(cmd, args)
		}
		return run(cmd, args)
	}
	return cmd
}

// andQuorums runs an action, and warns of quorums that the administrators cannot meet afterwards.
func (t *tool) andQuorums(run action) action {
	return func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return err
		}
		p, err := send(t, cmd, adminapi.Routes.PolicyShow, adminapi.None{})
		if err != nil { // the action succeeded
			warn(cmd, []string{"the quorums were not compared with the administrators: " + err.Error()})
		}
		warnOfQuorums(cmd, p)
		return nil
	}
}

func warnOfQuorums(cmd *cobra.Command, p adminapi.Policy) {
	for _, q := range p.Quorums {
		if q.Able < q.Required {
			warn(cmd, []string{quorumLine(q)})
		}
	}
}

func quorumLine(q adminapi.Quorum) string {
	return fmt.Sprintf("%s takes %s, and %d can countersign", q.Kind, plural(q.Required, "administrator"), q.Able)
}

func (t *tool) addAdmin() *cobra.Command {
	var file, point string
	cmd := t.adminChange("add NAME --key FILE.pem | --public HEX", "Add a person who can countersign, by the public key",
		adminapi.Routes.AdminAdd, func(req *adminapi.Administer) (err error) {
			req.PublicKey, err = readPublic(file, point)
			return err
		})
	cmd.Flags().StringVar(&file, "key", "", "PEM of the public or private key, on P-256; only the public half is used")
	cmd.Flags().StringVar(&point, "public", "", "public key in hex, a point of P-256 of 33 or 65 bytes")
	return cmd
}

type adminRoute = adminapi.Route[adminapi.Administer, adminapi.Administrator]

func (t *tool) adminStep(verb, short string, route adminRoute) *cobra.Command {
	return t.adminChange(verb+" NAME", short, route, func(*adminapi.Administer) error { return nil })
}

// adminChange is a command that changes an administrator, which may take a quorum.
func (t *tool) adminChange(use, short string, route adminRoute, fill func(*adminapi.Administer) error) *cobra.Command {
	var req adminapi.Administer
	cmd := verb(use, short, func(cmd *cobra.Command, args []string) error {
		if err := fill(&req); err != nil {
			return err
		}
		return sendChange(t, cmd, adminTable, route, req, args...)
	})
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, dryRunHelp)
	quorumFlags(cmd)
	return cmd
}

// generatedKey is a new operator's key.
type generatedKey struct {
	PublicKey string `json:"public_key"` // hex, 33 bytes
}

var generatedTable = cli.Table[generatedKey]{{Title: "Public key", Value: func(k generatedKey) string { return k.PublicKey }}}

func (t *tool) keygen() *cobra.Command {
	var out string
	var on tokenFlags
	const short = "Generate an operator's key on a token, or for development in a file"
	cmd := verb("keygen --out FILE | --pkcs11 URI", short, func(cmd *cobra.Command, _ []string) error {
		var public protocol.PublicKey
		var err error
		switch {
		case (out == "") == (on.uri == ""):
			return fault.WhereToMake.Error()
		case out != "":
			fmt.Fprintln(cmd.ErrOrStderr(),
				"warning: a key in a file is for development: anyone who copies the file can countersign; use --pkcs11")
			public, err = writeKey(out)
		default:
			var key operatorKey
			key, err = on.make(cmd)
			public = key.public
		}
		if err != nil {
			return err
		}
		return generatedTable.One(t.printer(cmd), generatedKey{PublicKey: hex.EncodeToString(public[:])})
	})
	cmd.Flags().StringVar(&out, "out", "", "file to create, PKCS#8 PEM, mode 0600")
	on.add(cmd)
	return cmd
}
