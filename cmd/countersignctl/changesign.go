package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/appliance/change"
	"countersign/internal/cli"
	"countersign/protocol"
)

// signing is what the flags of sign say.
type signing struct {
	offline   string
	with      keyFlags
	yes, only bool
}

func (t *tool) sign() *cobra.Command {
	var s signing
	cmd := &cobra.Command{
		Use: "sign ID | sign --offline FILE", Args: cobra.MaximumNArgs(1),
		Short: "Countersign a request: with an operator's key, or without one as the admin socket",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case (len(args) == 1) == (s.offline != ""):
				return cli.Fail(cli.Usage, errors.New("want the id of a request, or --offline and a file"), "countersignctl change list shows the ids")
			case s.offline != "":
				return t.signOffline(cmd, s)
			}
			return t.signOnline(cmd, args[0], s)
		},
	}
	cmd.Flags().StringVar(&s.offline, "offline", "", "sign a document that export wrote; the signature goes to standard output")
	cmd.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&s.only, "dry-run", false, "only show what would be signed")
	s.with.add(cmd)
	return cmd
}

func (t *tool) signOffline(cmd *cobra.Command, s signing) error {
	document, err := os.ReadFile(s.offline)
	if err != nil {
		return cli.Fail(cli.IO, fmt.Errorf("reading the document: %w", err), "")
	}
	r, err := change.Parse(document)
	if err != nil {
		return fmt.Errorf("%s: %w", s.offline, err)
	}
	hash := change.HashOf(document)
	if ok, err := s.agreed(cmd, r, hash); !ok {
		return err
	}
	signature, err := s.with.sign(cmd, hash)
	if err != nil {
		return err
	}
	if signature == nil {
		return cli.Fail(cli.Usage, errors.New("no key"), "give --key or --pkcs11")
	}
	_, err = cmd.OutOrStdout().Write(signature)
	return err
}

func (t *tool) signOnline(cmd *cobra.Command, id string, s signing) error {
	r, hash, _, err := t.fetch(cmd.Context(), id)
	if err != nil {
		return err
	}
	if ok, err := s.agreed(cmd, r, hash); !ok {
		return err
	}
	signature, err := s.with.sign(cmd, hash)
	if err != nil {
		return err
	}
	return t.handIn(cmd, id, signature)
}

// agreed shows what is to be signed and asks.
func (s signing) agreed(cmd *cobra.Command, r change.Request, hash change.Hash) (bool, error) {
	showRequest(cmd.ErrOrStderr(), r, hash)
	if s.only || s.yes {
		return !s.only, nil
	}
	ok, err := cli.TerminalOf(cmd).Confirm("Countersign this?")
	if err == nil && !ok {
		err = cli.Fail(cli.Failed, errors.New("nothing was signed"), "answer y, or give --yes")
	}
	return ok, err
}

func (t *tool) handIn(cmd *cobra.Command, id string, signature []byte) error {
	a, err := t.api()
	if err != nil {
		return err
	}
	var c admin.Change
	if err := a.post(cmd.Context(), "change/"+id+"/sign", admin.Sign{Signature: signature}, &c); err != nil {
		return t.waiting(cmd, err)
	}
	return changeDetails.One(t.printer(cmd), c)
}

func (t *tool) addSignature() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "add-signature ID FILE", Args: cobra.ExactArgs(2), Short: "Hand in a signature that was made elsewhere; FILE - is standard input",
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := readSignature(cmd.InOrStdin(), args[1])
			if err != nil {
				return cli.Fail(cli.IO, fmt.Errorf("reading the signature: %w", err), "")
			}
			signature, err := change.ParseSignature(raw)
			if err != nil {
				return cli.Fail(cli.BadSignature, err, "want what countersignctl change sign --offline writes, see CHANGE.md")
			}
			if dry {
				return t.tryOut(cmd, args[0], signature)
			}
			return t.handIn(cmd, args[0], raw)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only verify it")
	return cmd
}

func readSignature(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, maxSignature))
	}
	return os.ReadFile(path)
}

// tryOut verifies a signature here, by the key that the appliance has of its signer.
func (t *tool) tryOut(cmd *cobra.Command, id string, signature change.Signature) error {
	_, hash, _, err := t.fetch(cmd.Context(), id)
	if err != nil {
		return err
	}
	a, err := t.api()
	if err != nil {
		return err
	}
	var all []admin.Administrator
	if err := a.get(cmd.Context(), "admin", &all); err != nil {
		return err
	}
	for _, one := range all {
		if one.Signer != signature.Signer.String() {
			continue
		}
		raw, err := hex.DecodeString(one.PublicKey)
		if err != nil {
			return fmt.Errorf("public key of %s: %w", one.Name, err)
		}
		public, err := protocol.ParsePublicKey(raw)
		if err != nil {
			return fmt.Errorf("public key of %s: %w", one.Name, err)
		}
		if err := signature.Verify(hash, public); err != nil {
			return cli.Fail(cli.BadSignature, err, "was it made for this request?")
		}
		return adminTable.One(t.printer(cmd), one)
	}
	return cli.Fail(cli.Denied, fmt.Errorf("no administrator has key %s", signature.Signer), "countersignctl admin list")
}

// maxSignature bounds what is read for a signature of 83 bytes.
const maxSignature = 4096
