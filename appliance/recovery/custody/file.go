package custody

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// maxFile bounds a share's file, in bytes; one with 32 commitments has 4 KiB.
const maxFile = 64 << 10

// Recipient reads an age recipient, "age1…"; errors tell what is wrong with it.
func Recipient(s string) (age.Recipient, error) {
	all, err := age.ParseRecipients(strings.NewReader(s))
	if err != nil {
		return nil, fmt.Errorf("age recipient: %w", err)
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("age recipient: %d of them, want one custodian for one share", len(all))
	}
	return all[0], nil
}

// Passphrase is a custodian who keeps a passphrase in the head and no key: 16 bytes at
// least (age's scrypt recipient, N = 2¹⁸).
func Passphrase(secret []byte) (age.Recipient, error) {
	const least = 16
	if len(secret) < least {
		return nil, fmt.Errorf("passphrase of %d bytes, want at least %d", len(secret), least)
	}
	return age.NewScryptRecipient(string(secret))
}

// Unlock is the identity of a custodian with a passphrase.
func Unlock(secret []byte) (age.Identity, error) { return age.NewScryptIdentity(string(secret)) }

// Identities reads an age identity file, as age-keygen writes it.
func Identities(file []byte) ([]age.Identity, error) {
	ids, err := age.ParseIdentities(bytes.NewReader(file))
	if err != nil {
		return nil, errors.New("age identities: the file is not one of age-keygen") // never what it holds
	}
	return ids, nil
}

// Seal makes the file of a share for one custodian: armored, so that it can be
// printed. `age -d` shows its text.
func (s Share) Seal(to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, to)
	if err == nil {
		text := s.text()
		_, err = w.Write(text)
		clear(text)
	}
	if err == nil {
		err = errors.Join(w.Close(), armored.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("encrypting share %d: %w", s.Number, err)
	}
	return out.Bytes(), nil
}

// Locked tells whether a share's file is still encrypted: its custodian may have opened
// it already, with `age -d` and a device of his own.
func Locked(file []byte) bool { return !bytes.HasPrefix(file, []byte(shareTitle)) }

// Open reads a share from its file. A file that none of the identities opens is
// [ErrSealed], or [ErrPassphrase] where it is for a passphrase; what is in it or about it is wrong is [ErrShare].
func Open(file []byte, identities []age.Identity) (Share, error) {
	if !Locked(file) {
		return ParseShare(file)
	}
	if len(identities) == 0 {
		nobody, err := age.GenerateX25519Identity() // to learn for whom it is
		if err != nil {
			return Share{}, err
		}
		identities = []age.Identity{nobody}
	}
	r, err := age.Decrypt(dearmored(file), identities...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) && slices.Equal(none.StanzaTypes, []string{"scrypt"}) {
		return Share{}, ErrPassphrase
	}
	if errors.As(err, &none) {
		return Share{}, ErrSealed
	}
	if err != nil {
		return Share{}, fmt.Errorf("file of a share: %v: %w", err, ErrShare)
	}
	text, err := io.ReadAll(io.LimitReader(r, maxFile))
	defer clear(text)
	if err != nil {
		return Share{}, fmt.Errorf("file of a share: %v: %w", err, ErrShare)
	}
	return ParseShare(text)
}

func dearmored(file []byte) io.Reader {
	if bytes.HasPrefix(bytes.TrimLeft(file, " \t\r\n"), []byte(armor.Header)) {
		return armor.NewReader(bytes.NewReader(file))
	}
	return bytes.NewReader(file)
}
