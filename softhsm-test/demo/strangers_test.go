package demo

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	_ "modernc.org/sqlite" // the driver of the store that BREAK=replay puts back

	"countersign/protocol"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

// stranger compares a phone that is not enrolled with bob, who refuses.
func (s *stage) stranger(ctx context.Context) {
	s.client(ctx, "bob", denied, "authorize", "--link", s.wire.Link(), "--service", "100", "--refuse")
	refused := s.sizes()
	s.wire.Reset()
	reason := s.stray(ctx)
	strayed := s.sizes()
	s.Say("   a phone that nobody enrolled: denied, code %d (%s)", uint8(reason), reason)
	s.Say("           refused by its user:  %v bytes", refused)
	s.Say("           enrolled by nobody:   %v bytes", strayed)
	s.demand(reason == protocol.CodeRefused, "code %d", uint8(reason))
	s.demand(slices.Equal(refused, strayed), "sizes differ")
}

// stray runs a whole authorization with a key that is not enrolled.
func (s *stage) stray(ctx context.Context) protocol.Code {
	trust := s.trust(ctx)
	p := phone.Stranger(trust)
	conn := harness.Must(link.Dial(ctx, s.wire.Link()))
	defer func() { _ = conn.Close() }() // both answers are there, or an error is returned
	p1 := p.Next(100)
	session := harness.Must(p.Apply(p1.Marshal()))
	m2 := harness.Must(conn.Ask(session.M1))
	harness.Do(session.Open(m2))
	m3 := harness.Must(session.Countersign(ctx, protocol.Approve))
	m4 := harness.Must(conn.Ask(m3))
	p4 := harness.Must(session.Result(m3, m4))
	s.demand(p4.Result == protocol.ResultDenied, "result %v", p4.Result)
	return p4.Reason
}

// trust is what an enrolled phone would have.
func (s *stage) trust(ctx context.Context) protocol.Trust {
	status := harness.Must(s.Status(ctx))
	raw := harness.Must(hex.DecodeString(status.RootKey))
	root := harness.Must(protocol.ParsePublicKey(raw))
	return harness.Must(phone.FetchTrust(ctx, s.URL, root.RootHash()))
}

// keep keeps what restricts clients as it is now, with its seals, beside the database.
func (s *stage) keep(ctx context.Context) {
	if harness.Break() == "" {
		return
	}
	if err := os.Remove(s.kept()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		harness.Do(err)
		return
	}
	alter(ctx, s.database(), `ATTACH DATABASE '`+s.kept()+`' AS kept`, `CREATE TABLE kept.restraint AS SELECT * FROM restraint`)
}

// putBack breaks the product by what a seal cannot show: it puts back whole what keep
// has kept, as if an old copy had been restored. REPLACE fires no trigger.
func (s *stage) putBack(ctx context.Context, also ...string) {
	alter(ctx, s.database(), append(also,
		`ATTACH DATABASE '`+s.kept()+`' AS kept`, `INSERT OR REPLACE INTO restraint SELECT * FROM kept.restraint`)...)
}

func (s *stage) kept() string { return filepath.Join(s.dir, "kept.db") }

// alter writes to the database behind the appliance's back.
func alter(ctx context.Context, path string, statements ...string) {
	db := harness.Must(sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(2000)"}).String()))
	defer func() { _ = db.Close() }() // the writes are committed
	db.SetMaxOpenConns(1)             // an attached database belongs to one connection
	for _, statement := range statements {
		harness.Must(db.ExecContext(ctx, statement))
	}
}
