package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	_ "modernc.org/sqlite" // the driver of the store that BREAK=replay puts back

	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/rig/phone"
	"countersign/softhsm-test/rig/wire"
)

// stranger compares a phone that nobody enrolled with bob, who refuses.
func (s *stage) stranger(ctx context.Context) error {
	if _, err := s.client(ctx, "bob", denied, "authorize", "--link", s.wire.Link(), "--service", "100", "--refuse"); err != nil {
		return err
	}
	refused := s.sizes()
	s.wire.Reset()
	reason, err := s.stray(ctx)
	if err != nil {
		return err
	}
	strayed := s.sizes()
	s.say("   a phone that nobody enrolled: denied, code %d (%s)", uint8(reason), reason)
	s.say("           refused by its user:  %v bytes", refused)
	s.say("           enrolled by nobody:   %v bytes", strayed)
	s.demand(reason == protocol.CodeRefused, "code %d", uint8(reason))
	s.demand(slices.Equal(refused, strayed), "sizes differ")
	return nil
}

// stray runs a whole authorization with a key that nobody enrolled.
func (s *stage) stray(ctx context.Context) (protocol.Code, error) {
	pinned, err := s.trust(ctx)
	if err != nil {
		return 0, err
	}
	p, err := phone.Stranger(pinned)
	if err != nil {
		return 0, err
	}
	conn, err := wire.Dial(ctx, s.wire.Link())
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }() // both answers are there, or an error is returned
	p1 := p.Next(100)
	session, err := p.Apply(p1.Marshal())
	if err != nil {
		return 0, err
	}
	m2, err := conn.Ask(session.M1)
	if err != nil {
		return 0, err
	}
	if err := session.Open(m2); err != nil {
		return 0, err
	}
	m3, err := session.Countersign(ctx, protocol.Approve)
	if err != nil {
		return 0, err
	}
	m4, err := conn.Ask(m3)
	if err != nil {
		return 0, err
	}
	p4, err := session.Result(m3, m4)
	s.demand(p4.Result == protocol.ResultDenied, "result %v", p4.Result)
	return p4.Reason, err
}

// trust is what an enrolled phone would have.
func (s *stage) trust(ctx context.Context) (trust.State, error) {
	status, err := s.Status(ctx)
	if err != nil {
		return trust.State{}, err
	}
	raw, err := hex.DecodeString(status.RootKey)
	if err != nil {
		return trust.State{}, fmt.Errorf("root key: %w", err)
	}
	root, err := protocol.ParsePublicKey(raw)
	if err != nil {
		return trust.State{}, fmt.Errorf("root key: %w", err)
	}
	return phone.FetchTrust(ctx, s.URL, root.RootHash())
}

// keep keeps what restricts clients as it is now, with its seals, beside the database.
func (s *stage) keep(ctx context.Context) error {
	if s.broken == "" {
		return nil
	}
	if err := os.Remove(s.kept()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return alter(ctx, s.database(), `ATTACH DATABASE '`+s.kept()+`' AS kept`, `CREATE TABLE kept.restraint AS SELECT * FROM restraint`)
}

// putBack breaks the product by what a seal cannot show: it puts back whole what keep
// has kept, as if an old copy had been restored. REPLACE fires no trigger.
func (s *stage) putBack(ctx context.Context, also ...string) error {
	return alter(ctx, s.database(), append(also,
		`ATTACH DATABASE '`+s.kept()+`' AS kept`, `INSERT OR REPLACE INTO restraint SELECT * FROM kept.restraint`)...)
}

func (s *stage) kept() string { return filepath.Join(s.dir, "kept.db") }

// alter writes to the database behind the appliance's back.
func alter(ctx context.Context, path string, statements ...string) error {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(2000)"}).String())
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // what was written is committed
	db.SetMaxOpenConns(1)             // what is attached is of one connection
	for _, statement := range statements {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("writing to the database: %w", err)
		}
	}
	return nil
}
