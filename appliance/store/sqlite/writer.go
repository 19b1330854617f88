package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/appliance/store/head"
)

const (
	queueLength = 1024 // operations that wait; more wait for a place
	groupSize   = 256  // operations in one commit
	// Operations between checkpoints (about 10 MiB of log if each is a group of
	// its own), and frames (4 KiB pages) in the log from
	// which a checkpoint waits for readers so that the log can start afresh.
	checkpointEvery = 500
	checkpointWaits = 16384
)

var errClosed = fmt.Errorf("%w: closed", store.ErrUnavailable)

// op is one change in the queue of the writer.
type op struct {
	ctx    context.Context
	do     func(*txn) error
	result error      // of do
	moved  bool       // it moved the head
	done   chan error // takes one
}

// writer owns the only connection that writes. Its goroutine commits in groups: a group is every
// operation that arrived while the previous group became durable.
type writer struct {
	db      *sql.DB
	log     hclog.Logger
	queue   chan *op
	quit    chan struct{} // closed by Close: take no more
	stopped chan struct{} // closed when the goroutine has answered every caller
	fatal   chan error

	recorded func(audit.Record) // see [Config]
	readOnly bool               // a group is read, and rolled back

	// Used by the goroutine only.
	txn    *txn
	broken error
	ops    []*op // the group
	since  int   // operations since the last checkpoint
}

func newWriter(ctx context.Context, db *sql.DB, v *atomic.Pointer[vault], log hclog.Logger) (*writer, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	return &writer{
		db: db, log: log, txn: newTxn(conn, v),
		queue:   make(chan *op, queueLength),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
		fatal:   make(chan error, 1),
		ops:     make([]*op, 0, groupSize),
	}, nil
}

// submit runs do within the next group and returns once it is durable. If the context ends in the
// queue, do does not run; if it ends later, do is not stopped.
func (w *writer) submit(ctx context.Context, do func(*txn) error) error {
	o := &op{ctx: ctx, do: do, done: make(chan error, 1)}
	select {
	case <-w.quit:
		return errClosed
	default:
	}
	select {
	case w.queue <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.quit:
		return errClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-w.stopped:
		return o.late()
	}
}

// late returns the result of an operation that the end of the writer overtook.
func (o *op) late() error {
	select {
	case err := <-o.done:
		return err
	default:
		return errClosed
	}
}

func (w *writer) run() {
	defer close(w.stopped)
	for {
		select {
		case o := <-w.queue:
			w.commit(o)
			w.checkpoint()
		case <-w.quit:
			w.drain()
			return
		}
	}
}

// drain commits the operations that were queued before the store closed.
func (w *writer) drain() {
	for {
		select {
		case o := <-w.queue:
			w.commit(o)
		default:
			return
		}
	}
}

// commit commits a group of first and all waiting operations, and answers their callers.
func (w *writer) commit(first *op) {
	w.ops = append(w.ops[:0], first)
	err := w.begin()
	for o := first; err == nil && o != nil; o = w.next() {
		err = w.apply(o)
	}
	if err == nil {
		err = w.end()
	}
	if err != nil {
		w.abort(err)
	}
	w.since += len(w.ops)
	behind := error(nil)
	if err == nil {
		behind = w.follow()
	}
	for i, o := range w.ops {
		w.ops[i] = nil
		switch {
		case err != nil:
			o.result = unavailable(err)
		case o.moved && behind != nil: // it is durable, and its caller may ask again
			o.result = unavailable(behind)
		}
		o.done <- o.result
	}
	if err == nil {
		w.report()
	}
}

// report passes on the audit records of a group that became durable.
func (w *writer) report() {
	if w.recorded == nil {
		return
	}
	for _, rec := range w.txn.records {
		w.recorded(rec)
	}
}

// follow adopts a head that became durable, and advances the anchor.
func (w *writer) follow() error {
	v := w.txn.vault.Load()
	if v == nil || w.txn.moved.Revision == 0 {
		return nil
	}
	m := w.txn.moved
	v.newest.Store(&m)
	v.behind.Store(true)
	v.seals.Use(w.txn.moved.MAC)
	err := v.catchUp()
	if err != nil {
		w.log.Error("the anchor could not follow the store", "error", err)
	}
	return err
}

// next returns one more operation of the group. An operation that moves the head is the last of its
// group, so that at most one revision is ever without an anchor.
func (w *writer) next() *op {
	if len(w.ops) == groupSize || w.txn.moved.Revision != 0 {
		return nil
	}
	select {
	case o := <-w.queue:
		w.ops = append(w.ops, o)
		return o
	default:
		return nil
	}
}

func (w *writer) begin() error {
	if w.broken != nil {
		return w.broken
	}
	w.txn.moved, w.txn.records = store.Mark{}, w.txn.records[:0]
	begin := "BEGIN IMMEDIATE"
	if w.readOnly {
		begin = "BEGIN"
	}
	if _, err := w.txn.exec(begin); err != nil {
		return err
	}
	return w.txn.schemaUnchanged()
}

// apply runs one operation so that it can fail alone. An error that it returns fails the whole
// group.
func (w *writer) apply(o *op) error {
	if o.result = o.ctx.Err(); o.result != nil {
		return nil
	}
	if _, err := w.txn.exec("SAVEPOINT op"); err != nil {
		return err
	}
	before, recorded := w.txn.moved, len(w.txn.records)
	err := o.do(w.txn)
	named, alone := own(err)
	if !alone {
		return err
	}
	if o.result = named; named != nil {
		if _, err := w.txn.exec("ROLLBACK TO op"); err != nil {
			return err
		}
		w.txn.moved, w.txn.records = before, w.txn.records[:recorded]
	}
	o.moved = w.txn.moved != before
	_, err = w.txn.exec("RELEASE op")
	return err
}

func (w *writer) end() error {
	end := "COMMIT"
	if w.readOnly {
		end = "ROLLBACK"
	}
	_, err := w.txn.exec(end)
	return err
}

// abort rolls the group back.
func (w *writer) abort(err error) {
	w.log.Error("commit failed", "operations", len(w.ops), "error", err)
	if w.fail(err) {
		return
	}
	// SQLite rolls back by itself after some errors, and this fails then. After any other
	// failure the next BEGIN fails too.
	_, _ = w.txn.exec("ROLLBACK")
}

// fail stops the store for good if err leaves the content of the disk unknown.
func (w *writer) fail(err error) bool {
	if w.broken == nil && lost(err) {
		w.broken = err
		w.fatal <- unavailable(err)
	}
	return w.broken != nil
}

// checkpoint copies the log into the database from time to time. It runs after the group was
// answered. Unless an fsync failed, the next checkpoint makes up for a failed one.
func (w *writer) checkpoint() {
	if w.since < checkpointEvery || w.broken != nil {
		return
	}
	w.since = 0
	frames, err := w.copyLog("PRAGMA wal_checkpoint(PASSIVE)")
	if err == nil && frames > checkpointWaits {
		_, err = w.copyLog("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err != nil && !w.fail(err) {
		w.log.Warn("checkpoint failed", "error", err)
	}
}

func (w *writer) copyLog(pragma string) (frames int, err error) {
	var busy, copied int
	err = w.txn.row(pragma).Scan(&busy, &frames, &copied)
	return frames, err
}

// close ends the goroutine and closes the connection. After a failed fsync the connection stays
// open until the process ends, because closing it would sync again.
func (w *writer) close() error {
	close(w.quit)
	<-w.stopped
	if w.broken != nil {
		return nil
	}
	if !w.readOnly {
		if _, err := w.copyLog("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			if w.fail(err) {
				return err
			}
			w.log.Warn("checkpoint failed", "error", err) // the log has everything
		}
	}
	return errors.Join(w.txn.close(), w.db.Close())
}

// txn is the connection of the writer with its prepared statements, as an operation sees it. It
// takes no contexts: an operation that has begun is finished.
type txn struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	vault *atomic.Pointer[vault]

	moved   store.Mark     // of the head that the group has written; zero: none
	moving  *head.Move     // while the head moves
	records []audit.Record // that the group has written
}

func newTxn(conn *sql.Conn, v *atomic.Pointer[vault]) *txn {
	return &txn{conn: conn, stmts: map[string]*sql.Stmt{}, vault: v}
}

func (t *txn) prepare(query string) (*sql.Stmt, error) {
	if s, ok := t.stmts[query]; ok {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), query)
	if err == nil {
		t.stmts[query] = s
	}
	return s, err
}

// exec returns the number of rows changed.
func (t *txn) exec(query string, args ...any) (int64, error) {
	s, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// insert returns the new row's key.
func (t *txn) insert(query string, args ...any) (int64, error) {
	s, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// row returns a row to scan, or [sql.ErrNoRows].
func (t *txn) row(query string, args ...any) scanner {
	s, err := t.prepare(query)
	if err != nil {
		return failed{err}
	}
	return careful{s.QueryRow(args...), t.vault.Load(), query}
}

// rows returns the rows of a query; the caller closes them.
func (t *txn) rows(query string, args ...any) (*sql.Rows, error) {
	s, err := t.prepare(query)
	if err != nil {
		return nil, err
	}
	return s.Query(args...)
}

// close returns the connection to its pool, which the caller closes next.
func (t *txn) close() error {
	var errs []error
	for _, s := range t.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, t.conn.Close())...)
}
