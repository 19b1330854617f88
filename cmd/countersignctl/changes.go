package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"countersign/appliance/adminapi"
	"countersign/appliance/change"
	"countersign/internal/cli"
	"countersign/internal/fault"
	"countersign/protocol"
)

func (t *tool) change() *cobra.Command {
	r := adminapi.Routes
	show := t.showChange(r.ChangeShow)
	cmd := &cobra.Command{Use: "change", Short: "Countersign changes that take more than one administrator"}
	cmd.AddCommand(
		t.listChanges(),
		verb("show ID", "Show what a request changes, who signed it and who has to", show),
		t.sign(), t.addSignature(), t.export(),
		withDryRun("only show the request", show,
			verb("withdraw ID", "End a request, so that it can no longer be countersigned", t.showChange(r.ChangeWithdraw))),
	)
	return cmd
}

// showChange calls a route with the id of a request and prints the request.
func (t *tool) showChange(route adminapi.Route[adminapi.None, adminapi.Change]) action {
	return func(cmd *cobra.Command, args []string) error {
		c, err := send(t, cmd, route, adminapi.None{}, args...)
		if err != nil {
			return err
		}
		return t.printChange(cmd, c)
	}
}

// listChanges also says whether older requests are missing from the list.
func (t *tool) listChanges() *cobra.Command {
	return verb("list", "List change requests, newest first", func(cmd *cobra.Command, _ []string) error {
		all, err := send(t, cmd, adminapi.Routes.ChangeList, adminapi.None{})
		if err != nil {
			return err
		}
		if len(all) >= adminapi.ChangesShown {
			fmt.Fprintf(cmd.ErrOrStderr(),
				"the newest %d requests and all open ones; countersignctl audit tail has the older ones\n", len(all))
		}
		return changeTable.List(t.printer(cmd), all)
	})
}

// fetched is a change request as read from its own bytes.
type fetched struct {
	change.Request
	hash     change.Hash
	document []byte
	whole    bool // it is shown with its policy document
}

// fetch reads a request from its document and ignores the rest of the answer. The id of the document must be the
// requested one.
func (t *tool) fetch(cmd *cobra.Command, id string) (f fetched, err error) {
	c, err := send(t, cmd, adminapi.Routes.ChangeShow, adminapi.None{}, id)
	if err != nil {
		return f, err
	}
	f.document, f.hash = c.Document, change.HashOf(c.Document)
	if want := strings.ToLower(id); want != f.hash.String() && want != f.hash.ID().String() {
		err = fmt.Errorf("the appliance answered with another request than %s", id)
		return f, fault.ForeignDocument.Of(err)
	}
	f.Request, err = change.Parse(c.Document)
	return f, err
}

func (t *tool) export() *cobra.Command {
	return verb("export ID", "Write the document of a request to standard output, to sign it on another machine", func(cmd *cobra.Command, args []string) error {
		f, err := t.fetch(cmd, args[0])
		if err == nil {
			_, err = cmd.OutOrStdout().Write(f.document)
		}
		return err
	})
}

// signing has the flags of sign.
type signing struct {
	offline   string
	with      keyFlags
	yes, only bool

	// compare compares a policy document with the policy in force; nil: offline.
	compare func(*cobra.Command, []byte) (policyChanges, error)
}

func (t *tool) sign() *cobra.Command {
	var s signing
	cmd := &cobra.Command{
		Use: "sign ID | sign --offline FILE", Args: cobra.MaximumNArgs(1),
		Short: "Countersign a request with an operator's key, or without one as the admin socket",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (len(args) == 1) == (s.offline != ""):
				return fault.WhichChange.Error()
			case s.offline != "":
				return s.signOffline(cmd)
			}
			return t.signOnline(cmd, args[0], s)
		},
	}
	cmd.Flags().StringVar(&s.offline, "offline", "", "sign a document that export wrote, and write the signature to standard output")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&s.only, "dry-run", false, "only show the request")
	s.with.add(cmd)
	return cmd
}

func (s signing) signOffline(cmd *cobra.Command) error {
	document, err := os.ReadFile(s.offline)
	if err != nil {
		return fault.ReadDocument.Of(err)
	}
	r, err := change.Parse(document)
	if err != nil {
		return fmt.Errorf("%s: %w", s.offline, err)
	}
	signature, err := s.sign(cmd, fetched{Request: r, hash: change.HashOf(document)})
	switch {
	case err != nil || s.only:
		return err
	case signature == nil:
		return fault.NoOperatorKey.Error()
	}
	_, err = cmd.OutOrStdout().Write(signature)
	return err
}

func (t *tool) signOnline(cmd *cobra.Command, id string, s signing) error {
	f, err := t.fetch(cmd, id)
	if err != nil {
		return err
	}
	s.compare = t.comparePolicy
	signature, err := s.sign(cmd, f)
	if err != nil || s.only {
		return err
	}
	return t.handIn(cmd, id, signature)
}

// sign shows a request, asks, and signs it. With --dry-run it only shows it. It returns no signature without a key.
func (s signing) sign(cmd *cobra.Command, f fetched) ([]byte, error) {
	f.whole = true
	showRequest(cmd.ErrOrStderr(), f)
	if document := f.Parameters.Bytes("document"); document != nil && s.compare != nil {
		changes, err := s.compare(cmd, document)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "\n%s", changes)
	}
	if s.only {
		return nil, nil
	}
	if !s.yes {
		ok, err := cli.TerminalOf(cmd).Confirm("Countersign this?")
		if err == nil && !ok {
			err = fault.NotSigned.Error()
		}
		if err != nil {
			return nil, err
		}
	}
	return s.with.sign(cmd, f.hash)
}

// handIn sends a signature, or without one the countersignature of the admin socket.
func (t *tool) handIn(cmd *cobra.Command, id string, signature []byte) error {
	c, err := send(t, cmd, adminapi.Routes.ChangeSign, adminapi.Sign{Signature: signature}, id)
	if err != nil {
		return err
	}
	if err := changeHead.One(t.printer(cmd), c); err != nil {
		return err
	}
	announce(cmd.ErrOrStderr(), c)
	return nil
}

func (t *tool) addSignature() *cobra.Command {
	var dry bool
	cmd := verb("add-signature ID FILE", "Hand in a signature from another machine; FILE - is standard input", func(cmd *cobra.Command, args []string) error {
		raw, err := readSignature(cmd.InOrStdin(), args[1])
		if err != nil {
			return fault.ReadSignature.Of(err)
		}
		signature, err := change.ParseSignature(raw)
		if err != nil {
			return fault.BadSignatureFile.Of(err)
		}
		if dry {
			return t.verify(cmd, args[0], signature)
		}
		return t.handIn(cmd, args[0], raw)
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only verify it")
	return cmd
}

// maxSignature bounds the input for a signature of 83 bytes.
const maxSignature = 4096

func readSignature(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxSignature))
	}
	return os.ReadFile(path)
}

// verify verifies a signature with the key that the appliance has for its signer, and prints the administrator.
func (t *tool) verify(cmd *cobra.Command, id string, signature change.Signature) error {
	f, err := t.fetch(cmd, id)
	if err != nil {
		return err
	}
	all, err := send(t, cmd, adminapi.Routes.AdminList, adminapi.None{})
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Signer != signature.Signer.String() {
			continue
		}
		var public protocol.PublicKey
		raw, err := hex.DecodeString(one.PublicKey)
		if err == nil {
			public, err = protocol.ParsePublicKey(raw)
		}
		if err != nil {
			return fmt.Errorf("public key of %s: %w", one.Name, err)
		}
		if err := signature.Verify(f.hash, public); err != nil {
			return fault.OtherRequest.Of(err)
		}
		return adminTable.One(t.printer(cmd), one)
	}
	return fault.NoSuchAdmin.With("key", signature.Signer.String()).Error()
}
