package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"countersign/appliance/recovery/custody"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/custodian"
	"countersign/internal/fault"
)

// custodians are the people who hold the shares of the backup key. Its verbs do not call the appliance and can run on
// another machine.
func (t *tool) custodians() *cobra.Command {
	cmd := &cobra.Command{Use: "custodians", Short: "Split a backup key among custodians, and check their shares"}
	cmd.AddCommand(t.custodiansInit(), t.custodiansCheck())
	return cmd
}

// splitting has the flags of key custodians init.
type splitting struct {
	threshold   int
	recipients  []string
	passphrases []string // files
	asked       int
	out         string
}

func (t *tool) custodiansInit() *cobra.Command {
	var s splitting
	cmd := &cobra.Command{
		Use: "init --threshold M --out DIR", Args: cobra.NoArgs,
		Short: "Generate a backup key, split it, and write a share for each custodian; the key itself is not stored",
		Long: "Generate a backup key in memory, split it so that M custodians together recover it, and write share-N.age for each of them\n" +
			"and backup.pub, which config.toml names as backup.recipient. Each --recipient, --passphrase-file and question of --passphrases is one custodian.",
		RunE: func(cmd *cobra.Command, _ []string) error { return t.split(cmd, s) },
	}
	cmd.Flags().IntVar(&s.threshold, "threshold", 0, "number of custodians that recover the key (at least 2)")
	cmd.Flags().StringArrayVar(&s.recipients, "recipient", nil, "age recipient of a custodian, age1…; can be repeated")
	cmd.Flags().StringArrayVar(&s.passphrases, "passphrase-file", nil,
		"file of mode 0600 with a custodian's passphrase, at least 16 bytes; can be repeated")
	cmd.Flags().IntVar(&s.asked, "passphrases", 0, "number of custodians to ask for a passphrase on the terminal")
	cmd.Flags().StringVar(&s.out, "out", "", "directory for the shares and backup.pub, created if it does not exist")
	_ = cmd.MarkFlagRequired("threshold") // the flags exist
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// publicName is the name of the file that config.toml refers to.
const publicName = "backup.pub"

func (t *tool) split(cmd *cobra.Command, s splitting) error {
	people, err := s.people(cmd)
	if err != nil {
		return err
	}
	scheme := custody.Scheme{Threshold: s.threshold, Shares: len(people)}
	if err := scheme.Check(); err != nil {
		return fault.CustodiansWrong.Of(err)
	}
	if err := custody.Distinct(people); err != nil {
		return fault.SameCustodian.Of(err)
	}
	if err := s.vacant(len(people)); err != nil {
		return err
	}
	public, shares, err := custody.Make(scheme)
	if err != nil {
		return err
	}
	var written []shareWords
	for i, share := range shares {
		file, err := share.Seal(people[i])
		if err != nil {
			return err
		}
		written = append(written, wordsOf(s.path(i+1), share))
		if err := writeBytes(s.path(i+1), file); err != nil {
			return err
		}
	}
	text, err := custody.PublicPEM(public)
	if err != nil {
		return err
	}
	if err := writeBytes(filepath.Join(s.out, publicName), text); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "The backup key exists only in these shares. Give one to each custodian and keep none. "+
		"Each custodian should run countersignctl key custodians check.\n"+
		"Before countersignd init, set in config.toml: [backup] recipient = %q\n", filepath.Join(s.out, publicName))
	return shareTable.List(t.printer(cmd), written)
}

func (s splitting) path(n int) string { return filepath.Join(s.out, fmt.Sprintf("share-%d.age", n)) }

// vacant creates the directory. It returns an error if the directory has the files of another split.
func (s splitting) vacant(n int) error {
	if err := os.MkdirAll(s.out, 0o700); err != nil {
		return fault.CustodianDir.Of(err)
	}
	paths := []string{filepath.Join(s.out, publicName)}
	for i := range n {
		paths = append(paths, s.path(i+1))
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fault.SharesThere.With("path", path).Error()
		}
	}
	return nil
}

// people returns the custodians, in the order of recipients, passphrase files, questions.
func (s splitting) people(cmd *cobra.Command) (all []custody.Custodian, err error) {
	for _, r := range s.recipients {
		to, err := custody.Recipient(r)
		if err != nil {
			return nil, fault.BadAgeRecipient.Of(err)
		}
		all = append(all, to)
	}
	for _, path := range s.passphrases {
		secret, err := config.Secret{Source: "file", Path: path}.Resolve(config.SecretSources{})
		if err != nil {
			return nil, err
		}
		if all, err = withPassphrase(all, secret); err != nil {
			return nil, err
		}
	}
	for range s.asked {
		secret, err := askTwice(cmd, fmt.Sprintf("Passphrase of custodian %d: ", len(all)+1))
		if err != nil {
			return nil, err
		}
		if all, err = withPassphrase(all, secret); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func withPassphrase(all []custody.Custodian, secret []byte) ([]custody.Custodian, error) {
	defer clear(secret)
	to, err := custody.Passphrase(secret)
	if err != nil {
		return nil, fault.WeakPassphrase.Of(err)
	}
	return append(all, to), nil
}

func askTwice(cmd *cobra.Command, question string) ([]byte, error) {
	terminal := cli.TerminalOf(cmd)
	first, err := terminal.Secret(question)
	if err != nil {
		return nil, err
	}
	again, err := terminal.Secret("Once more: ")
	defer clear(again)
	if err == nil && !bytes.Equal(first, again) {
		err = fault.PassphrasesDiffer.Error()
	}
	return first, err
}

// shareWords describe a share.
type shareWords struct {
	File      string `json:"file"`
	Share     int    `json:"share"`
	Of        int    `json:"of"`
	Threshold int    `json:"threshold"`
	BackupKey string `json:"backup_key"` // hex, 33 bytes
}

func wordsOf(path string, s custody.Share) shareWords {
	return shareWords{File: path, Share: s.Number, Of: s.Of, Threshold: s.Threshold(), BackupKey: s.Key().String()}
}

var shareTable = cli.Table[shareWords]{
	{Title: "File", Value: func(s shareWords) string { return s.File }},
	{Title: "Share", Value: func(s shareWords) string { return number(s.Share) + " of " + number(s.Of) }},
	{Title: "Needed", Value: func(s shareWords) string { return number(s.Threshold) }},
	{Title: "Backup key", Value: func(s shareWords) string { return s.BackupKey }},
}

func (t *tool) custodiansCheck() *cobra.Command {
	var public string
	cmd := &cobra.Command{
		Use: "check --share FILE", Args: cobra.NoArgs, Short: "Open shares, verify them, and show their backup key",
	}
	flags := custodian.AddFlags(cmd)
	cmd.Flags().StringVar(&public, "backup-key", "", "backup.pub that the shares must belong to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		shares, err := flags.Read(cli.TerminalOf(cmd).Secret)
		if err != nil {
			return err
		}
		var words []shareWords
		for i, s := range shares {
			if err := fits(s, public); err != nil {
				return fmt.Errorf("%s: %w", flags.Shares[i], err)
			}
			words = append(words, wordsOf(flags.Shares[i], s))
		}
		return shareTable.List(t.printer(cmd), words)
	}
	return cmd
}

// fits compares a share with backup.pub, if there is a path.
func fits(s custody.Share, path string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fault.ReadBackupKey.Of(err)
	}
	key, err := custody.ParsePublicPEM(text)
	if err != nil {
		return fault.BadBackupKey.Of(err)
	}
	if custody.PointOf(key) != s.Key() {
		return custodian.Explain(fmt.Errorf("%s, not of %s: %w", s, custody.PointOf(key), custody.ErrMixed))
	}
	return nil
}
