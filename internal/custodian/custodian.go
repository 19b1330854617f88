// Package custodian reads the shares of a backup key from the files of its custodians,
// for the commands that need them.
package custodian

import (
	"errors"
	"fmt"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"countersign/appliance/custody"
	"countersign/internal/cli"
	"countersign/internal/config"
)

// Flags name the files of shares and what opens them.
type Flags struct {
	Shares      []string
	Identities  []string // files of age-keygen
	Passphrases []string // files of mode 0600
}

// AddFlags gives a command --share, --identity and --passphrase-file.
func AddFlags(cmd *cobra.Command) *Flags {
	f := &Flags{}
	cmd.Flags().StringArrayVar(&f.Shares, "share", nil, "file of a share; may be given again")
	cmd.Flags().StringArrayVar(&f.Identities, "identity", nil, "age identity file of a custodian; may be given again")
	cmd.Flags().StringArrayVar(&f.Passphrases, "passphrase-file", nil, "file of mode 0600 with a custodian's passphrase, in place of a question on the terminal; may be given again")
	return f
}

// Read opens every share. One that no identity opens and that is for a passphrase is
// asked for with ask, once; what a share holds is never in an error.
func (f Flags) Read(ask func(question string) ([]byte, error)) ([]custody.Share, error) {
	if len(f.Shares) == 0 {
		return nil, cli.Fail(cli.Usage, errors.New("no share was given"), "name each custodian's file: --share FILE")
	}
	identities, err := f.identities()
	if err != nil {
		return nil, err
	}
	var shares []custody.Share
	for _, path := range f.Shares {
		file, err := os.ReadFile(path)
		if err != nil {
			return nil, cli.Fail(cli.IO, fmt.Errorf("reading a share: %w", err), "")
		}
		s, err := custody.Open(file, identities)
		if errors.Is(err, custody.ErrPassphrase) && len(f.Passphrases) == 0 {
			s, err = askFor(path, file, ask)
		}
		if err != nil {
			return nil, Explain(fmt.Errorf("%s: %w", path, err))
		}
		shares = append(shares, s)
	}
	return shares, nil
}

func (f Flags) identities() (all []age.Identity, err error) {
	for _, path := range f.Identities {
		file, err := os.ReadFile(path)
		if err != nil {
			return nil, cli.Fail(cli.IO, fmt.Errorf("reading identities: %w", err), "")
		}
		some, err := custody.Identities(file)
		clear(file)
		if err != nil {
			return nil, cli.Fail(cli.Auth, fmt.Errorf("%s: %w", path, err), "a custodian with another kind of key opens the share himself, age -d, and gives the file with its text")
		}
		all = append(all, some...)
	}
	for _, path := range f.Passphrases {
		id, err := unlock(config.Secret{Source: "file", Path: path}.Resolve(config.SecretSources{}))
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, nil
}

func unlock(secret config.SecretValue, err error) (age.Identity, error) {
	if err != nil {
		return nil, err
	}
	defer secret.Wipe()
	return custody.Unlock(secret.Bytes())
}

func askFor(path string, file []byte, ask func(string) ([]byte, error)) (custody.Share, error) {
	secret, err := ask("Passphrase of " + path + ": ")
	if err != nil {
		return custody.Share{}, err
	}
	id, err := unlock(config.NewSecretValue(secret), nil)
	if err != nil {
		return custody.Share{}, err
	}
	return custody.Open(file, []age.Identity{id})
}

// exits is the one table from errors of shares to exit codes and advice.
var exits = []struct {
	err  error
	code cli.Code
	hint string
}{
	{custody.ErrSealed, cli.Auth, "give the custodian's own identity, --identity FILE, or passphrase"},
	{custody.ErrShare, cli.Failed, "the file was damaged or changed: take the custodian's other copy, or another custodian's share"},
	{custody.ErrMixed, cli.Failed, "countersignctl key custodians check tells of each share which backup key it is of"},
	{custody.ErrFew, cli.Denied, "bring in further custodians: one share fewer than the threshold tells nothing of the key"},
}

// Explain gives errors of package custody an exit code and advice.
func Explain(err error) error {
	for _, row := range exits {
		if errors.Is(err, row.err) {
			return cli.Fail(row.code, err, row.hint)
		}
	}
	return err
}
