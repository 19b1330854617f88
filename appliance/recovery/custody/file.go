package custody

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
	"filippo.io/age/armor"
)

// maxFile bounds a share's file, in bytes; one with 32 commitments has 4 KiB.
const maxFile = 64 << 10

// Unlock returns the identity of a custodian with a passphrase.
func Unlock(secret []byte) (age.Identity, error) { return age.NewScryptIdentity(string(secret)) }

// Identities parses an age identity file, as written by age-keygen.
func Identities(file []byte) ([]age.Identity, error) {
	ids, err := age.ParseIdentities(bytes.NewReader(bytes.TrimPrefix(file, []byte("\ufeff"))))
	if err != nil {
		return nil, errors.New("age identities: age-keygen did not write this file") // never its content
	}
	return ids, nil
}

// Seal returns the file of a share for one custodian. It is armored, so that it can be
// printed; `age -d` decrypts it.
func (s Share) Seal(to Custodian) ([]byte, error) {
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, to.Recipient)
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

// Locked reports whether a share's file is still encrypted. Its custodian may have decrypted
// it with `age -d` and another device.
func Locked(file []byte) bool { return !bytes.HasPrefix(file, []byte(shareTitle)) }

// Open reads a share from its file. If none of the identities opens it, the error is
// [ErrPassphrase] for a file with a passphrase and [ErrSealed] for others. Other errors
// wrap [ErrShare].
func Open(file []byte, identities []age.Identity) (Share, error) {
	if !Locked(file) {
		return ParseShare(file)
	}
	if len(identities) == 0 {
		unused, err := age.GenerateX25519Identity() // to learn the type of recipient
		if err != nil {
			return Share{}, err
		}
		identities = []age.Identity{unused}
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
