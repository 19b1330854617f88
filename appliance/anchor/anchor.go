// Package anchor stores the facts that an appliance remembers outside its database, in one small
// file: the newest root, the newest revision of the head and the version of mac in force. A
// database that is behind its anchor is old or forged.
package anchor

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"countersign/protocol"
)

var (
	// ErrNone means that there is no anchor.
	ErrNone = errors.New("there is no anchor")
	// ErrThere means that an anchor exists; Create replaces none.
	ErrThere = errors.New("there is an anchor already")
	// ErrDamaged means that this package did not write the file.
	ErrDamaged = errors.New("the anchor is damaged")
	// ErrBack means that a value is smaller than the one in the anchor.
	ErrBack = errors.New("the anchor does not go back")
	// ErrBranch means that the database has another head of the revision in the anchor.
	ErrBranch = errors.New("the anchor has another head of this revision")
	// ErrOther means that the anchor has another root of this number.
	ErrOther = errors.New("the anchor has another root under this number")
)

// Anchor is the content of the file:
//
//	# Lines that begin with # are comments, before the first value only.
//	root 2
//	key 03…
//	cert 5f…
//	revision 17
//	mac 1
//	head 9c…
//
// Each line is a name, one space and the value. All are there, once and in this order.
// Numbers are decimal, bytes are lower-case hex. Anything else is an error.
type Anchor struct {
	Root     uint64             // number of the newest root that was in force, from 1
	Key      protocol.PublicKey // its public key
	CertHash [32]byte           // SHA-256 of its RootCert
	Revision uint64             // newest revision of the database's head
	MAC      uint64             // newest version of mac in force
	Head     [32]byte           // SHA-256 of the head of that revision; zeros: not known
}

const preamble = `# The anchor of this appliance: its newest root, and the newest revision and version
# of mac of its database. countersignd writes it and refuses a database that is older
# or has other roots. Do not edit it, copy it back or remove it.
`

// text returns the content of the file.
func (a Anchor) text() []byte { return append([]byte(preamble), a.values()...) }

func (a Anchor) values() []byte {
	return fmt.Appendf(nil, "root %d\nkey %x\ncert %x\nrevision %d\nmac %d\nhead %x\n", a.Root, a.Key[:], a.CertHash[:], a.Revision, a.MAC, a.Head[:])
}

// maxSize bounds the file, bytes.
const maxSize = 4096

// Read reads the file. Its errors wrap [ErrNone] or [ErrDamaged], or come from the file system.
func Read(path string) (Anchor, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Anchor{}, fmt.Errorf("%s: %w", path, ErrNone)
	}
	if err != nil {
		return Anchor{}, err
	}
	defer func() { _ = f.Close() }() // it is read only
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Anchor{}, err
	}
	a, err := parse(text)
	if err != nil {
		return Anchor{}, fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
	}
	return a, nil
}

func parse(text []byte) (a Anchor, err error) {
	if len(text) > maxSize {
		return a, fmt.Errorf("it is longer than %d bytes", maxSize)
	}
	for bytes.HasPrefix(text, []byte("#")) {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	lines := strings.Split(string(text), "\n")
	read := []struct {
		name string
		into func(string) error
	}{
		{"root", number(&a.Root)},
		{"key", fixed(a.Key[:])},
		{"cert", fixed(a.CertHash[:])},
		{"revision", number(&a.Revision)},
		{"mac", number(&a.MAC)},
		{"head", fixed(a.Head[:])},
	}
	if len(lines) != len(read)+1 || lines[len(read)] != "" {
		return a, fmt.Errorf("it has %d lines of values, want %d", len(lines)-1, len(read))
	}
	for i, r := range read {
		name, value, _ := strings.Cut(lines[i], " ")
		if name != r.name {
			return a, fmt.Errorf("line %q, want %s", lines[i], r.name)
		}
		if err := r.into(value); err != nil {
			return a, fmt.Errorf("%s %q: %w", r.name, value, err)
		}
	}
	return a, a.check(text)
}

// check refuses values without a meaning, and any other spelling than this package writes.
func (a Anchor) check(values []byte) error {
	if a.Root == 0 {
		return errors.New("roots are numbered from 1")
	}
	if _, err := protocol.ParsePublicKey(a.Key[:]); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if !bytes.Equal(a.values(), values) {
		return errors.New("a value is not in its shortest form")
	}
	return nil
}

func number(into *uint64) func(string) error {
	return func(s string) (err error) {
		*into, err = strconv.ParseUint(s, 10, 64)
		return err
	}
}

func fixed(into []byte) func(string) error {
	return func(s string) error {
		if len(s) != 2*len(into) {
			return fmt.Errorf("want %d hex digits", 2*len(into))
		}
		_, err := hex.Decode(into, []byte(s))
		return err
	}
}
