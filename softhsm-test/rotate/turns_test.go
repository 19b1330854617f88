package rotate

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign/protocol/message"
	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/harness/link"
	"countersign/softhsm-test/harness/phone"
)

func now() uint64 { return uint64(time.Now().Unix()) }

// turn is one key.
type turn struct {
	name   string
	times  int  // it is rotated so often
	retire bool // and the version before is retired at once
}

// turns are all keys. Of ca the version before stays: certificates of devices are by it.
var turns = []turn{
	{"decision", 2, true},
	{"kem", 4, true},
	{"client-ca", 2, true},
	{"enrol", 2, true},
	{"ca", 2, false},
	{"mac", 2, true},
	{"wrap", 2, true},
	{"root", 3, false},
}

// rotateAll rotates every key in turn while phones authorize.
func (s *stage) rotateAll(ctx context.Context) {
	acts, _ := s.acts()
	l := s.start(ctx)
	err := harness.Try(func() {
		for _, t := range s.turns {
			for range s.times(t.times) {
				s.turn(ctx, l, t)
			}
			s.Say("%s: %d times", t.name, s.times(t.times))
		}
	})
	l.end(len(acts))
	harness.Do(err)
}

// times returns n, or 1 under -short.
func (s *stage) times(n int) int {
	if testing.Short() {
		return 1
	}
	return n
}

// turn rotates one key once: rotate, activate and retire, each with the load passing
// over it.
func (s *stage) turn(ctx context.Context, l *load, t turn) {
	old := s.active(ctx, t.name)
	next := s.rotate(ctx, l, t.name)
	s.wrapped = s.verifiers(ctx)
	s.activate(ctx, l, next)
	s.enrolsStill(ctx, l, next)
	if !t.retire {
		_, r := s.keys(ctx, "retire", old.ref(), "--yes")
		s.Check(r.Code == 1, "retiring %s at once: exit code %d, want 1: %s", old.ref(), r.Code, r.Stderr)
		return
	}
	if t.name == "wrap" {
		s.retireWrap(ctx, l, old)
		return
	}
	s.retire(ctx, l, old)
}

func (s *stage) active(ctx context.Context, name string) key {
	keys, r := s.keys(ctx, "list")
	for _, k := range keys {
		if k.Name == name && k.State == "active" {
			return k
		}
	}
	harness.Fail("no version of %s is active: exit code %d: %s", name, r.Code, r.Stderr)
	return key{}
}

// rotate readies the next version; its dry run has said so.
func (s *stage) rotate(ctx context.Context, l *load, name string) (next key) {
	planned, r := s.keys(ctx, "rotate", name, "--dry-run")
	if r.Code != 0 {
		harness.Fail("key rotate %s --dry-run: exit code %d: %s", name, r.Code, r.Stderr)
	}
	made, r := s.keys(ctx, "rotate", name)
	if r.Code != 0 {
		harness.Fail("key rotate %s: exit code %d: %s", name, r.Code, r.Stderr)
	}
	s.Check(slices.EqualFunc(planned, made, sameVersion), "rotate %s: %v, its dry run said %v", name, made, planned)
	l.passes(ctx)
	return nextOf(name, made)
}

func sameVersion(a, b key) bool { return a.ref() == b.ref() && a.State == b.State }

// nextOf is the version that a rotation readies: of root the lower one, since that
// after it is made too.
func nextOf(name string, made []key) key {
	versions := slices.DeleteFunc(slices.Clone(made), func(k key) bool { return k.Name != name })
	if len(versions) == 0 {
		return key{Name: name}
	}
	return slices.MinFunc(versions, func(a, b key) int { return cmp.Compare(a.Version, b.Version) })
}

func (s *stage) activate(ctx context.Context, l *load, next key) {
	s.breakBefore(ctx, next)
	args := []string{"activate", next.ref()}
	if next.Name == "root" {
		args = append(args, "--yes")
	}
	_, r := s.keys(ctx, args...)
	if r.Code != 0 {
		harness.Fail("key activate %s: exit code %d: %s", next.ref(), r.Code, r.Stderr)
	}
	in := s.active(ctx, next.Name)
	s.Check(in.Version == next.Version, "%s is active after activate %s", in.ref(), next.ref())
	l.passes(ctx)
}

// breakBefore breaks what activate relies on.
func (s *stage) breakBefore(ctx context.Context, next key) {
	switch {
	case harness.Break() == breakMAC && next.ref() == "mac@2":
		s.Say("(BREAK=mac: mac@1 may be retired before any record is sealed anew)")
	case harness.Break() == breakWrap && next.ref() == "wrap@2":
		s.Say("(BREAK=wrap: wrap@1 is given up before any verifier is wrapped anew)")
	case harness.Break() == breakCert && next.ref() == "kem@2":
		s.Say("(BREAK=cert: the KeyCert of kem@2 is spoilt)")
		s.tamper(ctx, `UPDATE key SET cert = zeroblob(127) WHERE name = 'kem' AND version = 2`)
		return
	}
}

// enrolsStill enrols a phone with a password, which then authorizes.
func (s *stage) enrolsStill(ctx context.Context, l *load, next key) {
	name := fmt.Sprintf("new-%s-%d+", next.Name, next.Version)
	s.enrol(ctx, name)
	r := s.authorize(ctx, name, s.Link)
	s.Check(r.Code == 0, "%s: exit code %d: %s", name, r.Code, r.Stderr)
	if r.Code == 0 {
		l.good.Add(1)
		l.newcomers++
	}
}

// retire ends a version. Records under a mac are made anew in the background, and it
// is refused until they are.
func (s *stage) retire(ctx context.Context, l *load, old key) {
	_, r := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(r.Code == 1, "retiring %s before its overlap is over: exit code %d, want 1: %s", old.ref(), r.Code, r.Stderr)
	harness.Do(harness.Until(ctx, "retiring "+old.ref(), func() (bool, error) {
		_, r := s.keys(ctx, "retire", old.ref(), "--early", "--yes")
		return r.Code == 0, nil
	}))
	l.passes(ctx)
	if old.Name == "kem" {
		s.refusesEpoch(ctx, old)
	}
}

// refusesEpoch: an application under a retired kem epoch is answered with a key
// update, which leads on.
func (s *stage) refusesEpoch(ctx context.Context, old key) {
	if harness.Break() == breakRetired && old.Version == 1 {
		s.Say("(BREAK=retired: kem@1 is accepted after it was retired)")
	}
	kind, answer := s.insist.answered(ctx, s.Link)
	s.Check(kind == message.KindKeyUpdate, "an application under %s: answer of kind %#x, want a key update", old.ref(), kind)
	if kind != message.KindKeyUpdate {
		return
	}
	s.insist.follow(answer)
	kind, _ = s.insist.answered(ctx, s.Link)
	s.Check(kind == message.KindM2, "after the key update: answer of kind %#x, want a challenge", kind)
}

// records is how far client records have come to the mac and wrap keys in use.
type records struct {
	Total   int    `json:"total"`
	Left    int    `json:"left"`
	Running bool   `json:"running"`
	Problem string `json:"problem"`
}

// renewal asks for it.
func (s *stage) renewal(ctx context.Context) records {
	var plan struct {
		Records records `json:"records"`
	}
	harness.Do(json.Unmarshal([]byte(s.MustCtl(ctx, "key", "plan", "-o", "json").Stdout), &plan))
	return plan.Records
}

// retireWrap waits until the background has wrapped every verifier anew, and checks that the store
// has none of the old ones. Then the version before can be retired at once, and every phone with a
// password continues: the load has some.
func (s *stage) retireWrap(ctx context.Context, l *load, old key) {
	var last records
	err := harness.Until(ctx, "verifiers wrapped anew", func() (done bool, err error) {
		last = s.renewal(ctx)
		return last.Total > 0 && last.Left == 0 && !last.Running, nil
	})
	if err != nil {
		harness.Fail("%w: %+v", err, last)
	}
	s.Check(last.Problem == "", "records: %+v", last)
	after := s.verifiers(ctx)
	kept := 0
	for v := range s.wrapped {
		if after[v] {
			kept++
		}
	}
	s.Check(len(s.wrapped) > 0 && kept == 0, "%d of %d verifiers are under %s as before", kept, len(s.wrapped), old.ref())
	_, r := s.keys(ctx, "retire", old.ref(), "--yes")
	s.Check(r.Code == 0, "retiring %s: exit code %d: %s", old.ref(), r.Code, r.Stderr)
	s.Say("%s: %d verifiers wrapped anew, %d of %d records left", old.ref(), len(s.wrapped), last.Left, last.Total)
	l.passes(ctx)
}

// verifiers are those in the store, behind the appliance's back.
func (s *stage) verifiers(ctx context.Context) map[string]bool {
	db := harness.Must(sql.Open("sqlite", s.database()))
	defer func() { harness.Do(db.Close()) }()
	rows := harness.Must(db.QueryContext(ctx, `SELECT verifier FROM client WHERE verifier IS NOT NULL`))
	defer rows.Close()
	all := map[string]bool{}
	for rows.Next() {
		var v []byte
		harness.Do(rows.Scan(&v))
		all[string(v)] = true
	}
	harness.Do(rows.Err())
	return all
}

// sleepers are phones that were enrolled before anything was rotated and are used for
// the first time when all is over: four kem epochs and three roots later, most with a
// password under the first mac and wrap.
var sleepers = []string{"eve", "frank+", "grace+", "heidi+", "ivan+", "judy+"}

// asleep returns the sleepers, two of them under -short.
func asleep() []string {
	if testing.Short() {
		return sleepers[:2]
	}
	return sleepers
}

// wakeAll: phones that slept go on, at a device that was there all the time and at one
// that slept as well.
func (s *stage) wakeAll(ctx context.Context) {
	harness.Do(s.asleep.Restart(ctx))
	for _, name := range asleep() {
		for at, link := range map[string]string{"the device that slept": s.asleep.Link, "the relay": s.Link, "the strict device": s.strict.Link} {
			r := s.authorize(ctx, name, link)
			s.Check(r.Code == 0, "%s at %s: exit code %d: %s", name, at, r.Code, r.Stderr)
		}
	}
	s.enrolWith(ctx, "late", s.late)
	r := s.authorize(ctx, "late", s.Link)
	s.Check(r.Code == 0, "late, by a code that names the first root: exit code %d: %s", r.Code, r.Stderr)
	acts := harness.Must(s.asleep.Acts())
	s.Check(len(acts) == len(asleep()), "the device that slept acted %d times, want %d", len(acts), len(asleep()))
	r = s.authorize(ctx, "mallory", s.asleep.Link)
	s.Check(r.Code == exitDenied, "mallory: exit code %d, want %d", r.Code, exitDenied)
}

// insistent is a phone at byte level that applies under any kem epoch.
type insistent struct{ *phone.Phone }

func newInsistent(ctx context.Context, a *harness.Appliance) *insistent {
	code := harness.Must(a.Invite(ctx, "client", "insist"))
	return &insistent{harness.Must(phone.Enrol(ctx, a.URL, code))}
}

// answered is the kind of message that an application under the phone's kem epoch is
// answered with.
func (i *insistent) answered(ctx context.Context, at string) (kind byte, answer []byte) {
	session := harness.Must(i.Apply(i.Next(100).Marshal()))
	answer = harness.Must(link.Ask(ctx, at, session.M1))
	return harness.Must(message.Kind(answer)), answer
}

// follow takes a key update.
func (i *insistent) follow(mu []byte) {
	i.Trust = harness.Must(i.Trust.Update(mu, i.Trust.Time(now())))
}
