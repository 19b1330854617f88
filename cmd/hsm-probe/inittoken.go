package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/miekg/pkcs11"
	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/internal/fault"
)

// initToken initializes an unused token for countersignd dev. The SO-PIN and the user's PIN come over a
// pipe, one line each.
func (t *tool) initToken() *cobra.Command {
	var module, label string
	cmd := &cobra.Command{
		Use: "init-token", Args: cobra.NoArgs, Hidden: true,
		Short: "Initialize an unused token with the SO-PIN and the PIN on standard input, for countersignd dev",
		RunE: func(cmd *cobra.Command, _ []string) error {
			pins, err := readPINs(cmd.InOrStdin())
			if err != nil {
				return fault.InitTokenUsage.Of(err)
			}
			return explain(initialize(module, label, pins))
		},
	}
	cmd.Flags().StringVar(&module, "module", "", "PKCS#11 module")
	cmd.Flags().StringVar(&label, "label", "", "label of the new token")
	_ = errors.Join(cmd.MarkFlagRequired("module"), cmd.MarkFlagRequired("label")) // both exist
	return cmd
}

// tokenPINs are the PINs of a new token.
type tokenPINs struct{ so, user string }

func readPINs(r io.Reader) (pins tokenPINs, err error) {
	in := bufio.NewScanner(io.LimitReader(r, 1024))
	for _, pin := range []*string{&pins.so, &pins.user} {
		if !in.Scan() || in.Text() == "" {
			return pins, errors.Join(in.Err(), errors.New("standard input does not have the SO-PIN and the PIN, one line each"))
		}
		*pin = in.Text()
	}
	return pins, nil
}

func initialize(module, label string, pins tokenPINs) (err error) {
	p := pkcs11.New(module)
	if p == nil {
		return fmt.Errorf("loading %s: %w", module, hsm.ErrUnavailable)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		return fmt.Errorf("C_Initialize of %s: %v: %w", module, err, hsm.ErrUnavailable)
	}
	defer func() { err = errors.Join(err, p.Finalize()) }()
	slot, err := unusedSlot(p)
	if err != nil {
		return err
	}
	if err := p.InitToken(slot, pins.so, label); err != nil {
		return fmt.Errorf("C_InitToken: %v: %w", err, hsm.ErrUnavailable)
	}
	session, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err == nil {
		err = p.Login(session, pkcs11.CKU_SO, pins.so)
	}
	if err == nil {
		err = p.InitPIN(session, pins.user)
	}
	if err != nil {
		return fmt.Errorf("setting the PIN of the new token %q: %v: %w", label, err, hsm.ErrUnavailable)
	}
	return nil
}

// unusedSlot returns a slot whose token is not initialized.
func unusedSlot(p *pkcs11.Ctx) (uint, error) {
	slots, err := p.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("C_GetSlotList: %v: %w", err, hsm.ErrUnavailable)
	}
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err == nil && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("every token of the module is initialized: %w", hsm.ErrUnavailable)
}
