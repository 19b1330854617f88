package anchor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"countersign/appliance/store"
	"countersign/protocol"

	"countersign/internal/durable"
)

// File is an anchor and its file. No value goes back. It is safe for concurrent use; no other
// process may write the file meanwhile.
type File struct {
	path string // "": in memory only

	mu      sync.Mutex
	current Anchor // zero: none yet
	unsure  bool   // the last write failed: the file may hold current or the value before
}

// Open reads the anchor at path. If there is none yet, [File.Root] creates it.
func Open(path string) (*File, error) {
	a, err := Read(path)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	return &File{path: path, current: a}, nil
}

// Create creates the file. It returns [ErrThere] if the file exists.
func Create(path string, a Anchor) (*File, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, cmp.Or(err, fmt.Errorf("%s: %w", path, ErrThere))
	}
	if err := a.check(a.values()); err != nil {
		return nil, fmt.Errorf("making an anchor: %w", err)
	}
	f := &File{path: path}
	return f, f.moveLocked(a) // not shared yet
}

// InMemory returns an anchor without a file, for tests and for programs that only read.
func InMemory(a Anchor) *File { return &File{current: a} }

// Current returns the current anchor. Its Root is 0 if there is none.
func (f *File) Current() Anchor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// Floor returns the mark of the newest head.
func (f *File) Floor() store.Mark {
	a := f.Current()
	return store.Mark{Revision: a.Revision, MAC: a.MAC, Head: a.Head}
}

// Advance moves revision and version of mac forward, to the head of that revision. It is durable
// when Advance returns; repeating it costs nothing. A smaller value is [ErrBack], another head of
// the same revision is [ErrBranch], and without an anchor the error is [ErrNone].
func (f *File) Advance(m store.Mark) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.current
	switch {
	case next.Root == 0:
		return fmt.Errorf("%s: %w", f.path, ErrNone)
	case m.Revision < next.Revision:
		return fmt.Errorf("revision %d after %d: %w", m.Revision, next.Revision, ErrBack)
	case m.MAC < next.MAC:
		return fmt.Errorf("mac %d after %d: %w", m.MAC, next.MAC, ErrBack)
	case m.Revision == next.Revision && next.Head != [32]byte{} && m.Head != next.Head:
		return fmt.Errorf("revision %d: %w", m.Revision, ErrBranch)
	}
	next.Revision, next.MAC, next.Head = m.Revision, m.MAC, m.Head
	return f.moveLocked(next)
}

// Root moves the root forward, or creates the anchor if there is none. The caller has verified the
// chain from the anchor's root to this one. A smaller number is [ErrBack]; another key or
// certificate under the same number is [ErrOther].
func (f *File) Root(number uint64, key protocol.PublicKey, certHash [32]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.current
	switch {
	case number < next.Root:
		return fmt.Errorf("root %d after %d: %w", number, next.Root, ErrBack)
	case number == next.Root && (key != next.Key || certHash != next.CertHash):
		return fmt.Errorf("root %d is %s here: %w", number, next.Key, ErrOther)
	}
	next.Root, next.Key, next.CertHash = number, key, certHash
	if err := next.check(next.values()); err != nil {
		return fmt.Errorf("moving the anchor: %w", err)
	}
	return f.moveLocked(next)
}

// moveLocked replaces the anchor. After an error the file may hold either value: the new one is in
// effect, and the next call writes it again.
func (f *File) moveLocked(next Anchor) error {
	if next == f.current && !f.unsure {
		return nil
	}
	f.current, f.unsure = next, true
	if f.path != "" {
		if err := durable.WriteFile(f.path, next.text(), 0o600); err != nil {
			return fmt.Errorf("%w: writing the anchor: %w", store.ErrUnavailable, err)
		}
	}
	f.unsure = false
	return nil
}
