package hostile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/change/requests"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/recovery"
	"countersign/appliance/recovery/backup"
	"countersign/protocol"
	"countersign/protocol/trust"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/phone"
	"countersign/softhsm-test/hostile/world"
)

// believed is what `countersignd restore --root` does to decide whether a backup of the
// keys is the appliance's.
func believed(file []byte, root protocol.PublicKey) (backup.Backup, error) {
	return backup.Read(file, backup.Known{Root: root})
}

// vouched is what it does to decide whether a copy of the database is the appliance's.
func vouched(file, statement []byte, root protocol.PublicKey) error {
	_, err := statementOf(file, statement, root)
	return err
}

func statementOf(keys, statement []byte, root protocol.PublicKey) (backup.Statement, error) {
	read, err := believed(keys, root)
	if err != nil {
		return backup.Statement{}, err
	}
	return read.Vouched(statement)
}

// signedFile is the form of both files, as package backup draws it.
type signedFile struct {
	_         struct{} `cbor:",toarray"`
	Kind      string
	Payload   []byte
	Roots     [][]byte
	Cert      []byte
	Signature []byte
}

// The kinds of files.
const (
	kindKeys     = "key backup"
	kindDatabase = "database"
)

var det = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err) // of constants
	}
	return mode
}()

func encoded(v any) []byte {
	b, err := det.Marshal(v)
	if err != nil {
		panic(err) // of structs of this file
	}
	return b
}

// payload of a genuine file.
func payload(file []byte) ([]byte, error) {
	var s signedFile
	err := cbor.Unmarshal(file, &s)
	return s.Payload, err
}

// sign makes a file by a root of the attacker's own. prefix are roots that it puts before
// its own.
func (r foreign) sign(ctx context.Context, kind string, content []byte, prefix ...[]byte) ([]byte, error) {
	key := phone.NewKey()
	cert, err := trust.SignKeyCert(ctx, r.key, trust.KeyCert{
		Epoch: 9, Use: trust.UseDecision, Key: key.Point(),
		NotBefore: uint64(time.Now().Add(-time.Hour).Unix()), NotAfter: uint64(time.Now().Add(time.Hour).Unix()),
	})
	if err != nil {
		return nil, err
	}
	s := signedFile{Kind: kind, Payload: content, Roots: append(prefix, r.cert), Cert: cert}
	digest := sha256.Sum256(protocol.SigStructure("countersign "+kind+" v1", content))
	s.Signature, err = key.SignDigest(ctx, digest[:])
	return encoded(s), err
}

// files is what comes of forged, mixed, truncated, foreign and genuine files, for an
// appliance with its first root and for one that has rotated it.
func (s *stage) files(ctx context.Context) {
	rotated := s.rotatedRoot(ctx)
	elsewhere := filepath.Join(s.dir, "elsewhere")
	harness.Do(os.Mkdir(elsewhere, 0o700))
	other := harness.Must(world.Build(ctx, elsewhere))
	for _, one := range []struct {
		name string
		set
		roots []protocol.PublicKey
	}{
		{"root 1", set{s.Backup, s.Vouched}, []protocol.PublicKey{s.Root}},
		{"root 2", rotated.set, []protocol.PublicKey{s.Root, rotated.root}},
	} {
		for i, root := range one.roots {
			name := fmt.Sprintf("files of %s, root %d is known", one.name, i+1)
			s.genuine(name, one.set, root)
			s.forged(ctx, name, one.set, root)
			s.mixed(name, one.set, set{other.Backup, other.Vouched}, root)
			s.damaged(name, one.set, root)
		}
	}
	s.behind(ctx)
}

// set is what lies beside each other on a backup medium.
type set struct{ keys, statement []byte }

func (s *stage) genuine(name string, f set, root protocol.PublicKey) {
	err := vouched(f.keys, f.statement, root)
	s.Check(err == nil, "%s: the genuine ones are refused: %v", name, err)
}

// forged are signed by a root of the attacker's own; in their payload is the true one.
func (s *stage) forged(ctx context.Context, name string, f set, root protocol.PublicKey) {
	mallory := harness.Must(newRoot(ctx))
	content := harness.Must(payload(f.keys))
	document := harness.Must(s.withRoot(content, root))
	about := harness.Must(payload(f.statement))
	for _, prefix := range [][][]byte{nil, s.trueRoots(f.keys)} {
		for what, content := range map[string][]byte{"as it was": content, "altered": document} {
			keys, err1 := mallory.sign(ctx, kindKeys, content, prefix...)
			statement, err2 := mallory.sign(ctx, kindDatabase, about, prefix...)
			harness.Do(errors.Join(err1, err2))
			s.Check(vouched(keys, f.statement, root) != nil, "GRANTED: %s: keys %s by a root of the attacker's own after %d true ones", name, what, len(prefix))
			s.Check(vouched(keys, statement, root) != nil, "GRANTED: %s: keys %s and database by a root of the attacker's own after %d true ones", name, what, len(prefix))
			s.Check(vouched(f.keys, statement, root) != nil, "GRANTED: %s: database by a root of the attacker's own after %d true ones", name, len(prefix))
		}
	}
}

// trueRoots are those that a genuine file names.
func (s *stage) trueRoots(file []byte) [][]byte {
	var f signedFile
	_ = cbor.Unmarshal(file, &f) // it was read before
	return f.Roots
}

// withRoot gives the row of a root a certificate, if it has none, and lends a policy.
func (s *stage) withRoot(content []byte, root protocol.PublicKey) ([]byte, error) {
	var document backup.Document
	if err := cbor.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	for i := range document.Rows {
		if row := &document.Rows[i]; row.Name == keyring.Root && bytes.Equal(row.Public, root[:]) && row.Cert == nil {
			row.Cert = []byte("of no root")
		}
	}
	document.Policy.Document, document.Policy.Version = s.Lenient, document.Policy.Version+1
	return encoded(document), nil
}

// mixed are files of two appliances.
func (s *stage) mixed(name string, f, other set, root protocol.PublicKey) {
	s.Check(vouched(other.keys, other.statement, root) != nil, "GRANTED: %s: the files of another appliance", name)
	s.Check(vouched(f.keys, other.statement, root) != nil, "GRANTED: %s: the database of another appliance", name)
	s.Check(vouched(other.keys, f.statement, root) != nil, "GRANTED: %s: the keys of another appliance", name)
	s.Check(vouched(f.statement, f.keys, root) != nil, "GRANTED: %s: each in place of the other", name)
}

// damaged are cut off, or differ in a bit.
func (s *stage) damaged(name string, f set, root protocol.PublicKey) {
	for _, file := range []struct {
		bytes []byte
		taken func([]byte) error
	}{
		{f.keys, func(b []byte) error { return vouched(b, f.statement, root) }},
		{f.statement, func(b []byte) error { return vouched(f.keys, b, root) }},
	} {
		for range 40 {
			at := s.random.IntN(len(file.bytes))
			bad := bytes.Clone(file.bytes)
			bad[at] ^= 1 << s.random.IntN(8)
			s.Check(file.taken(bad) != nil, "GRANTED: %s: with a bit flipped in byte %d", name, at)
			s.Check(file.taken(file.bytes[:at]) != nil, "GRANTED: %s: cut off at byte %d", name, at)
		}
	}
}

// rotation is the set of files after a rotation of the root.
type rotation struct {
	set
	root protocol.PublicKey
}

// rotatedRoot returns the files of the appliance once root 2 is in use.
func (s *stage) rotatedRoot(ctx context.Context) (r rotation) {
	path := filepath.Join(s.dir, "rotated.db")
	defer remove(path)
	harness.Do(world.CopyHouse(path, s.Template))
	h := harness.Must(world.Open(ctx, s.Place(path)))
	defer func() { harness.Do(h.Close()) }()
	for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
		h.Clock.Advance(time.Second)
		s.voted(ctx, h, verb)
	}
	r.root = h.Keys.Root()
	state := harness.Must(backup.StateOf(ctx, h.Store))
	r.keys = harness.Must(backup.Write(ctx, h.Keys, backup.NewDocument(state, backup.Point{}, h.Clock.Now()), h.Clock.Now()))
	harness.Do(h.Recovery.CopyStore(ctx, 0, func(c recovery.StoreCopy) error {
		r.statement = c.Statement
		return nil
	}))
	return r
}

// voted takes a step of the root for which ann votes too.
func (s *stage) voted(ctx context.Context, h *world.House, verb keyplan.Verb) {
	_, err := h.Appliance.Keys.Take(ctx, keyplan.Step{Verb: verb, Name: keyring.Root})
	var waits *requests.Waiting
	if !errors.As(err, &waits) {
		harness.Fail("a step of the root without a second vote: %w", err)
	}
	raw := harness.Must(s.Operators["ann"].Sign(ctx, waits.Hash))
	harness.Must(h.Requests.Sign(ctx, waits.Hash.ID(), raw))
}

// beforeAnswers is the moment at which all is asked and nothing answered.
const beforeAnswers = 1

// behind restores a copy from before an approval on a host whose clock is slow, and sends the
// approved message again once the clock is right.
func (s *stage) behind(ctx context.Context) {
	c := attempt{Alteration: nothing, operation: operation{name: "restore with a clock that is behind"}}
	path := filepath.Join(s.dir, "behind.db")
	defer remove(path)
	harness.Do(world.CopyHouse(path, s.Earlier[beforeAnswers]))
	place := s.Place(path)
	h := harness.Must(world.Open(ctx, place))
	here := &scene{House: h, World: s.World, place: place}
	defer func() { _ = here.House.Close() }() // the file is thrown away
	place.Clock.Advance(-time.Hour)
	err := restored(func(here *scene, ctx context.Context) error {
		place.Clock.Advance(time.Hour)
		return again("asked once")(here, ctx)
	})(here, ctx)
	v := judge(c, here.House, here.grants, err)
	s.Check(v.outcome != granted, "GRANTED %v by a restore on a host whose clock is behind", v.extra)
}
