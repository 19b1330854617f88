package disaster

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	_ "modernc.org/sqlite" // to break the store behind the appliance's back

	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
)

// backUp backs up the keys, rotates two more, copies the database, and continues. A disaster loses
// everything after the copy.
func (s *stage) backUp(ctx context.Context) {
	if harness.Break() == breakSeal {
		s.Say("(BREAK=seal: the sealed copy of wrap@1 was damaged when it was made)")
	}
	s.MustCtl(ctx, "client", "revoke", "otto", "--yes")
	r := s.MustCtl(ctx, "key", "backup", "--out", s.path("keys.backup"), "-o", "json")
	var made struct{ Keys, Missing []string }
	err := json.Unmarshal([]byte(r.Stdout), &made)
	s.Check(err == nil && len(made.Keys) > 20 && len(made.Missing) == 0, "backup of %d keys, without %v: %v", len(made.Keys), made.Missing, err)
	for _, step := range [][]string{{"rotate", "mac"}, {"activate", "mac"}, {"rotate", "enrol"}, {"activate", "enrol"}} {
		s.MustCtl(ctx, append([]string{"key"}, step...)...)
	}
	s.authorize(ctx, s.door, authorization{"erin", 4, later})
	s.code = harness.Must(s.Invite(ctx, "client", "hugo"))
	s.MustCtl(ctx, "store", "backup", "--out", s.path("store.backup"))
	for _, name := range []string{"keys.backup", "store.backup", "store.backup.sig"} {
		info := harness.Must(os.Stat(s.path(name)))
		s.Check(info.Mode().Perm() == 0o600, "%s: %v", name, info)
	}
	s.afterTheCopy(ctx)
}

// afterTheCopy is the gap between the recovery point and the disaster.
func (s *stage) afterTheCopy(ctx context.Context) {
	for _, a := range []authorization{{"alice", 1, 0}, {"bob", 2, 0}} {
		s.authorize(ctx, s.door, a)
	}
	s.enrol(ctx, person{name: "gus"})
	s.MustCtl(ctx, "client", "revoke", "mallory", "--yes")
	s.authorize(ctx, s.door, authorization{"mallory", 1, denied})
}

// spoil flips a bit of a sealed copy in a database.
func (s *stage) spoil(ctx context.Context, path string) {
	source := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(5000)"}
	db := harness.Must(sql.Open("sqlite", source.String()))
	defer func() { harness.Do(db.Close()) }()
	var sealed []byte
	harness.Do(db.QueryRowContext(ctx, `SELECT sealed FROM key WHERE name = 'wrap' AND version = 1`).Scan(&sealed))
	sealed[len(sealed)-1] ^= 1
	for _, statement := range []string{`DROP TRIGGER IF EXISTS key_copy_is_final`, `UPDATE key SET sealed = ? WHERE name = 'wrap' AND version = 1`} {
		var args []any
		if statement[0] == 'U' {
			args = append(args, sealed)
		}
		harness.Must(db.ExecContext(ctx, statement, args...))
	}
}

// disaster destroys token and state. Phones, devices, custodians and files remain.
func (s *stage) disaster(ctx context.Context) {
	harness.Do(s.KillAll(ctx))
	s.emptyToken(ctx)
	r := s.phone(ctx, "alice", "authorize", "--link", s.door.Link, "--service", "100", "--yes")
	s.Check(r.Code != 0, "an authorization with nobody there: exit code %d", r.Code)
	labels := s.list(ctx)
	s.Check(len(labels) == 0, "on the new token: %v", labels)
}

// forger has the files, keys of his own, and certificates by them.
type forger struct {
	decision  phone.Key
	root      protocol.PublicKey
	rootCert  []byte
	certified []byte // KeyCert of decision
}

func newForger(ctx context.Context) forger {
	root, decision := phone.NewKey(), phone.NewKey()
	f := forger{decision: decision, root: root.Point()}
	f.rootCert = harness.Must(trust.SignRootCert(ctx, root, trust.RootCert{Number: 1, Key: f.root}))
	f.certified = harness.Must(trust.SignKeyCert(ctx, root, trust.KeyCert{Epoch: 1, Use: trust.UseDecision, Key: decision.Point(), NotAfter: 1 << 40}))
	return f
}

// signedFile is the form of a key backup and of a database's statement.
type signedFile struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Payload   []byte
	Roots     [][]byte
	Cert      []byte
	Signature []byte
}

// resign signs the content of a genuine file, the genuine roots included, under a new root.
func (f forger) resign(ctx context.Context, from, to string) {
	var file signedFile
	harness.Do(cbor.Unmarshal(harness.Must(os.ReadFile(from)), &file))
	digest := sha256.Sum256(protocol.SigStructure("countersign "+file.Kind+" v1", file.Payload))
	file.Roots, file.Cert = [][]byte{f.rootCert}, f.certified
	file.Signature = harness.Must(f.decision.SignDigest(ctx, digest[:]))
	harness.Do(os.WriteFile(to, harness.Must(cbor.Marshal(file)), 0o600))
}

// resigned replaces the backup, the statement, or both by a forger's.
func (s *stage) resigned(ctx context.Context, f *files, keys, statement bool) {
	by := newForger(ctx)
	if keys {
		by.resign(ctx, f.backup, s.path("forged.backup"))
		f.backup = s.path("forged.backup")
	}
	if statement {
		sig := f.database + ".sig"
		s.another(f)
		by.resign(ctx, sig, s.path("another.sig"))
	}
}

// killRounds is how often a restore is killed, quickly so; longestRestore bounds the random
// time from its begin to the kill: about what it takes.
const (
	killRounds     = 10
	quickRounds    = 2
	longestRestore = 1200 * time.Millisecond
)

// kills kills restores at random moments. After each kill another restore continues from the state
// that it left. A store that is already in place is removed.
func (s *stage) kills(ctx context.Context) {
	rounds, began, marked, done := killRounds, 0, 0, 0
	if testing.Short() {
		rounds = quickRounds
	}
	for range rounds {
		s.kill(ctx)
		labels := s.list(ctx)
		switch {
		case exists(s.path("state", "countersign.db")):
			done++
			s.startsOnce(ctx)
			s.emptyToken(ctx)
		case exists(s.path("state", "restoring")):
			marked++
			s.refusesMeanwhile(ctx)
		default:
			began++
			s.Check(len(labels) == 0, "without a mark the token has %v", labels)
		}
	}
	s.Say("%d kills: %d before the token was touched, %d while keys came, %d after", rounds, began, marked, done)
}

// startsOnce: a store that is in place is whole, and what the kill left is tidied up.
func (s *stage) startsOnce(ctx context.Context) {
	s.serve(ctx)
	s.origins(ctx)
	s.Check(!exists(s.path("state", "restoring")), "the mark of the restore is left")
	_, err := s.Stop()
	harness.Do(err)
}

func (s *stage) kill(ctx context.Context) {
	file, whole := s.tokenObject()
	d := harness.Must(s.Config.Bin.Start(harness.Call{Program: "countersignd", Args: s.daemonArgs(s.keyed().args()), Env: s.env()}))
	timer := time.NewTimer(time.Duration(s.random.Int64N(int64(longestRestore))))
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	children, err := d.Children()
	harness.Do(errors.Join(err, d.Kill()))
	for _, c := range children {
		harness.Do(c.Wait(ctx))
	}
	if info := harness.Must(os.Stat(file)); info.Size() == 0 {
		s.Say("SoftHSM lost its token to a kill in C_Login; it is put back")
		harness.Do(os.WriteFile(file, whole, 0o600))
	}
}

// tokenObject returns the path and content of token.object, which SoftHSM truncates at each
// C_Login and then writes again.
func (s *stage) tokenObject() (path string, content []byte) {
	files := harness.Must(filepath.Glob(s.path("tokens", "*", "token.object")))
	if len(files) != 1 {
		harness.Fail("%d files token.object", len(files))
	}
	return files[0], harness.Must(os.ReadFile(files[0]))
}

// refusesMeanwhile: where a restore was cut off nothing else begins.
func (s *stage) refusesMeanwhile(ctx context.Context) {
	for _, command := range []string{"init", "serve"} {
		r := s.countersignd(ctx, command)
		s.Check(r.Code == 1, "%s after a restore that was cut off: exit code %d, want 1: %s", command, r.Code, r.Stderr)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// restore brings the appliance back, once.
func (s *stage) restore(ctx context.Context) {
	f := s.good()
	if harness.Break() == breakShare {
		s.Say("(BREAK=share: a bit of a share is flipped)")
		s.flip(&f.shares[0], -10)
	}
	if harness.Break() == breakDatabase {
		s.Say("(BREAK=database: a bit of the database is flipped)")
		s.withSig(&f, s.flip)
	}
	begun := time.Now()
	r := s.countersignd(ctx, f.args()...)
	if r.Code != 0 {
		harness.Fail("countersignd restore: exit code %d: %s", r.Code, r.Stderr)
	}
	s.Say("restored in %v", time.Since(begun).Round(10*time.Millisecond))
	for _, says := range []string{" client/otto revoked", ", signed by decision@6 of "} {
		s.Check(strings.Contains(r.Stdout, says), "the report does not say %q: %s", says, r.Stdout)
	}
	s.Check(!exists(s.path("state", "restoring")) && !exists(s.path("state", "countersign.db.restoring")), "something of the restore is left in the state")
	r = s.countersignd(ctx, f.args()...)
	s.Check(r.Code == 1, "a second restore: exit code %d, want 1: %s", r.Code, r.Stderr)
	s.serve(ctx)
	s.origins(ctx)
}

// origins: the token has exactly the keys of the registry, and both say that the keys were
// restored.
func (s *stage) origins(ctx context.Context) {
	r := s.MustCtl(ctx, "key", "list", "-o", "json")
	var keys []struct{ Name, ID, Origin string }
	harness.Do(json.Unmarshal([]byte(r.Stdout), &keys))
	var ids []string
	for _, k := range keys {
		s.Check(k.Origin == "restored", "%s has the origin %q", k.Name, k.Origin)
		if !slices.Contains(ids, k.ID) {
			ids = append(ids, k.ID)
		}
	}
	all := s.list(ctx)
	s.Check(len(all) == len(ids), "the token has %d keys, the registry %d", len(all), len(ids))
	for _, o := range all {
		s.Check(slices.Contains(ids, o.ID), "%s, %s, is not in the registry", o.Label, o.ID)
		s.Check(o.Access == "sensitive", "access to %s is %q: not what a key is that came by unwrapping", o.Label, o.Access)
	}
	r = harness.Must(s.Ctl(ctx, "key", "attest"))
	s.Check((r.Code == 0 || r.Code == exitUnavailable), "key attest: exit code %d: %s", r.Code, r.Stderr)
	s.recorded(ctx)
}

// exitUnavailable is the exit code of key attest if the driver reports no attributes.
const exitUnavailable = 69

// recorded: the audit says that there was a restore.
func (s *stage) recorded(ctx context.Context) {
	records := harness.Must(s.Records(ctx))
	n := 0
	for _, r := range records {
		if r.Kind == "store" && r.Fields["event"] == "restored" {
			n++
		}
	}
	s.Check(n == 1, "%d records of a restore", n)
}

// again: all enrolled phones and devices continue. The gap has the effects that RECOVERY.md lists.
func (s *stage) again(ctx context.Context) {
	s.everybody(ctx)
	s.gap(ctx)
	harness.Must(s.gate.Stop())
	harness.Do(s.gate.Restart(ctx))
	s.authorize(ctx, s.gate, authorization{"dora", 3, 0})
	for _, step := range [][]string{{"key", "rotate", "kem"}, {"key", "activate", "kem"}, {"key", "backup", "--out", s.path("keys.2")}, {"store", "backup", "--out", s.path("store.2")}} {
		s.MustCtl(ctx, step...)
	}
	s.authorize(ctx, s.door, authorization{"alice", 1, 0})
	s.acted()
}

// gap: waiting approvals are denied, phones enrolled after the copy enrol again, and revocations
// after the copy are repeated.
func (s *stage) gap(ctx context.Context) {
	r := s.phone(ctx, "frank", "approve", "--link", s.door.Link, "--yes", "--password-file", s.path("password"))
	s.Check(r.Code == denied, "approving what waited before: exit code %d, want %d: %s", r.Code, denied, r.Stderr)
	r = s.phone(ctx, "erin", "status", "--last", "--link", s.door.Link)
	s.Check(r.Code == denied, "what became of it: exit code %d, want %d: %s", r.Code, denied, r.Stderr)
	s.authorize(ctx, s.door, authorization{"gus", 1, denied})
	r = s.phone(ctx, "hugo", "enrol", "--url", s.URL, "--no-password", s.code)
	s.Check(r.Code != 0, "an activation code from before was taken: %s", r.Stdout)
	s.enrol(ctx, person{name: "hugo"})
	harness.Do(os.RemoveAll(s.path("phone-gus")))
	s.enrol(ctx, person{name: "gus"})
	s.MustCtl(ctx, "client", "revoke", "mallory", "--yes")
	for _, a := range []authorization{{"gus", 1, 0}, {"mallory", 1, denied}} {
		s.authorize(ctx, s.door, a)
	}
}
