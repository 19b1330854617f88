// Package custodian reads shares of a backup key from custodians' files.
package custodian

import (
	"errors"
	"fmt"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"countersign/appliance/recovery/custody"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/internal/secret"
)

// Flags name the files of shares, and the identities and passphrases that open them.
type Flags struct {
	Shares      []string
	Identities  []string // files written by age-keygen
	Passphrases []string // files of mode 0600
}

// AddFlags gives a command --share, --identity and --passphrase-file.
func AddFlags(cmd *cobra.Command) *Flags {
	f := &Flags{}
	cmd.Flags().StringArrayVar(&f.Shares, "share", nil, "file of a share; can be repeated")
	cmd.Flags().StringArrayVar(&f.Identities, "identity", nil, "age identity file of a custodian; can be repeated")
	cmd.Flags().StringArrayVar(&f.Passphrases, "passphrase-file", nil,
		"file with mode 0600 and a custodian's passphrase, instead of a prompt on the terminal; can be repeated")
	return f
}

// Read opens every share. If a share needs a passphrase and no file has one, Read asks for
// it once. Errors never contain the content of a share.
func (f Flags) Read(ask func(question string) ([]byte, error)) ([]custody.Share, error) {
	if len(f.Shares) == 0 {
		return nil, fault.NoShare.Error()
	}
	identities, err := f.identities()
	if err != nil {
		return nil, err
	}
	var shares []custody.Share
	for _, path := range f.Shares {
		file, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.ReadShare.Of(err)
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
			return nil, fault.ReadIdentity.Of(err)
		}
		some, err := custody.Identities(file)
		clear(file)
		if err != nil {
			return nil, fault.BadIdentity.With("path", path).Of(err)
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

func unlock(passphrase secret.Bytes, err error) (age.Identity, error) {
	if err != nil {
		return nil, err
	}
	defer passphrase.Zero()
	return custody.Unlock(passphrase)
}

func askFor(path string, file []byte, ask func(string) ([]byte, error)) (custody.Share, error) {
	secret, err := ask("Passphrase of " + path + ": ")
	if err != nil {
		return custody.Share{}, err
	}
	id, err := unlock(secret, nil)
	if err != nil {
		return custody.Share{}, err
	}
	return custody.Open(file, []age.Identity{id})
}

// exits maps errors of shares to rows of the table of errors.
var exits = fault.Sentinels{
	{custody.ErrSealed, fault.ShareSealed},
	{custody.ErrShare, fault.ShareDamaged},
	{custody.ErrMixed, fault.SharesMixed},
	{custody.ErrFew, fault.SharesFew},
}

// Explain adds exit code and hint to errors of package custody.
func Explain(err error) error {
	if row, ok := exits.Find(err); ok {
		return row.Of(err)
	}
	return err
}
