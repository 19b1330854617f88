// Package sqlite implements the store in one SQLite file, in WAL mode with synchronous=FULL: an
// answered change is on the disk.
//
// One goroutine writes, and commits in groups. Reads have connections of their own and see the last
// commit. One process owns the file at a time.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/internal/durable"
)

// readers is the number of connections that read, each with at most 2 MiB of cache.
const readers = 3

// Config configures Open.
type Config struct {
	// Path of the database file. Open creates it with mode 0600, and its directory with mode 0700,
	// if they do not exist. Path-wal, Path-shm and Path.lock are beside it.
	Path string
	// ReadOnly opens an existing store without any change to its files. Changes then return
	// [store.ErrReadOnly].
	ReadOnly bool
	// Existing makes Open fail if there is no store.
	Existing bool
	// Logger gets failures that no caller gets in full; nil for none.
	Logger hclog.Logger
	// Recorded is called with each audit record that has become durable, in order, without its sequence number; nil:
	// not called. The next commit waits for it.
	Recorded func(audit.Record)
}

// database is a [store.Store] in a SQLite file.
type database struct {
	path  string
	vault atomic.Pointer[vault] // nil: sealed
	w     *writer
	r     *reader
	lock  io.Closer
	close func() error

	readOnly bool
}

// Open opens the store, sealed, or creates an empty one. All its errors wrap
// [store.ErrUnavailable]: another process uses the file, it is not a store, its records have no seals
// ([ErrMigrate]), or it cannot be read or written.
func Open(ctx context.Context, c Config) (store.Store, error) {
	s, err := openDatabase(ctx, c)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openDatabase(ctx context.Context, c Config) (*database, error) {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, unavailable(err)
	}
	if _, err := os.Stat(path); c.Existing && err != nil {
		return nil, unavailable(err)
	}
	c.Path = path
	s, err := c.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", path, err)
	}
	s.w.recorded = c.Recorded // before any operation
	return s, nil
}

func (c Config) open(ctx context.Context) (*database, error) {
	if c.ReadOnly {
		return openReadOnly(ctx, c)
	}
	return open(ctx, c.Path, c.Logger)
}

func open(ctx context.Context, path string, log hclog.Logger) (*database, error) {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return nil, unavailable(err)
	}
	lock, err := lock(path)
	if err != nil {
		return nil, err
	}
	s, err := openLocked(ctx, path, log)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s.lock = lock
	return s, nil
}

func openLocked(ctx context.Context, path string, log hclog.Logger) (*database, error) {
	if err := create(path); err != nil {
		return nil, err
	}
	if err := os.Remove(path + copySuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, unavailable(err)
	}
	wdb, err := sql.Open("sqlite", dsn(path, "rw"))
	if err != nil {
		return nil, unavailable(err)
	}
	wdb.SetMaxOpenConns(1)
	if err := makeSchema(ctx, wdb); err != nil {
		return nil, errors.Join(err, wdb.Close())
	}
	s, err := connect(ctx, connection{path: path, writes: wdb, reads: dsn(path, "ro"), log: log})
	if err == nil {
		go s.w.run()
	}
	return s, err
}

// connection is an opened database: its one connection for changes, and the driver's name of those that read.
type connection struct {
	path, reads string
	writes      *sql.DB
	log         hclog.Logger
}

// connect returns the store of a connection, which it closes if it fails. The caller starts the writer.
func connect(ctx context.Context, c connection) (*database, error) {
	s := &database{path: c.path}
	w, err := newWriter(ctx, c.writes, &s.vault, c.log)
	if err != nil {
		return nil, errors.Join(err, c.writes.Close())
	}
	rdb, err := sql.Open("sqlite", c.reads)
	if err != nil {
		return nil, errors.Join(unavailable(err), w.txn.close(), c.writes.Close())
	}
	rdb.SetMaxOpenConns(readers)
	rdb.SetMaxIdleConns(readers)
	s.w, s.r = w, &reader{db: rdb, vault: &s.vault}
	s.close = sync.OnceValue(s.closeAll)
	return s, nil
}

// Fatal implements [store.Store].
func (s *database) Fatal() <-chan error { return s.w.fatal }

// Close implements [store.Store].
func (s *database) Close() error { return s.close() }

func (s *database) closeAll() error {
	// The last connection must be able to remove the log.
	err := errors.Join(s.r.db.Close(), s.w.close())
	if s.w.broken == nil { // else the lock goes with the process, as the connection does
		err = errors.Join(err, s.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("closing store: %w", unavailable(err))
	}
	return nil
}

// errUnchanged says that an operation has nothing to store, its record included.
var errUnchanged = errors.New("unchanged")

// submit runs do in a transaction of its own; doing names the operation in errors.
func (s *database) submit(ctx context.Context, doing string, do func(*txn) error) error {
	if err := s.w.submit(ctx, do); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// write is submit for an unsealed store.
func (s *database) write(ctx context.Context, doing string, do func(*txn) error) error {
	if s.readOnly {
		return fmt.Errorf("%s: %w", doing, store.ErrReadOnly)
	}
	return s.submit(ctx, doing, func(t *txn) error {
		if t.verifier() == nil {
			return store.ErrSealed
		}
		return do(t)
	})
}

// change is write with an audit record in the same transaction, unless do returns errUnchanged.
func (s *database) change(ctx context.Context, doing string, rec audit.Record, do func(*txn) error) error {
	return s.write(ctx, doing, func(t *txn) error {
		switch err := do(t); {
		case errors.Is(err, errUnchanged):
			return nil
		case err != nil:
			return err
		}
		return t.append(rec)
	})
}

// Modes of files and directories: only their owner has access.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// lock takes the exclusive lock that keeps a second process, or a second store of this process, off
// the file. It is a file of its own, because closing any descriptor of the database would drop the
// locks of SQLite (POSIX).
func lock(path string) (io.Closer, error) {
	f, err := durable.Lock(path + ".lock")
	switch {
	case errors.Is(err, durable.ErrLocked):
		return nil, fmt.Errorf("%w: %s is in use by another process", ErrLocked, path)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return f, nil
}

// create creates the database file with its mode from the start, and makes its directory entry
// durable. SQLite gives the -wal and -shm files the mode of the database. The caller holds the
// lock.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if errors.Is(err, fs.ErrExist) {
		return tighten(path)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return nil
}

// tighten sets the mode of the files of an older store or a restored copy.
func tighten(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		err := os.Chmod(path+suffix, fileMode)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
	}
	return nil
}

// pragmas are the settings of every connection. The writer runs the checkpoints, because SQLite
// does not report a failed fsync of a checkpoint that it runs by itself.
var pragmas = []string{
	"busy_timeout(1000)",
	"synchronous(FULL)",
	"foreign_keys(1)",
	"trusted_schema(0)",
	"cache_size(-2048)", // KiB
	"wal_autocheckpoint(0)",
	"journal_size_limit(16777216)",
}

// dsn returns the driver's name of the file; mode is rw or ro, as in SQLite.
func dsn(path, mode string) string {
	q := url.Values{"mode": {mode}, "_dqs": {"0"}, "_defensive": {"1"}, "_pragma": pragmas}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}
