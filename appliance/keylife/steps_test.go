package keylife_test

import (
	"context"
	"crypto/ecdh"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/appliance/keylife"
	"countersign/appliance/keyplan"
	"countersign/appliance/keyring"
	"countersign/appliance/keyuse"
	"countersign/appliance/store"
	"countersign/appliance/store/audit"
	"countersign/hsm"
	"countersign/hsm/memory"
	"countersign/protocol/trust"
)

// life is a registry in memory with its token.
type life struct {
	*testing.T
	*keyuse.Keys
	token hsm.Token
	trust store.Trust
	now   time.Time
}

func (l *life) ListKeys(context.Context) ([]store.Key, error) { return l.trust.Keys, nil }

func (l *life) Settings(context.Context) (map[string][]byte, error) { return l.trust.Settings, nil }

func (l *life) AddTrust(context.Context, store.Trust, audit.Record) error { return store.ErrExists }

// ChangeKeys enforces the contract that steps rely on: new rows are new, and a row
// replaces the previous revision.
func (l *life) ChangeKeys(_ context.Context, c store.KeyChange, _ audit.Record) error {
	find := func(k store.Key) int {
		return slices.IndexFunc(l.trust.Keys, func(o store.Key) bool { return o.Name == k.Name && o.Version == k.Version })
	}
	for _, k := range c.Add {
		if find(k) >= 0 {
			return store.ErrExists
		}
	}
	for _, k := range c.Update {
		if i := find(k); i < 0 || l.trust.Keys[i].Revision != k.Revision-1 {
			return store.ErrConflict
		}
	}
	for _, k := range c.Update {
		l.trust.Keys[find(k)] = k
	}
	l.trust.Keys = append(l.trust.Keys, c.Add...)
	maps.Copy(l.trust.Settings, c.Settings)
	return nil
}

func newLife(t *testing.T) *life {
	t.Helper()
	return newLifeOn(t, memory.New())
}

func newLifeOn(t *testing.T, token hsm.Token) *life {
	t.Helper()
	l := &life{T: t, token: token, now: time.Now().Truncate(time.Second)}
	var err error
	if l.trust, err = keylife.Ceremony(t.Context(), l.token, "test.example", l.now); err != nil {
		t.Fatal(err)
	}
	l.load(l.token)
	return l
}

func (l *life) load(token hsm.Token) {
	l.Helper()
	var err error
	if l.Keys, err = keyuse.Load(l.Context(), token, l, pinned(l.trust)); err != nil {
		l.Fatal(err)
	}
}

// compromised rotates a key whose earlier versions are compromised.
func (l *life) compromised(name string) error {
	l.Helper()
	return l.do(keyplan.Step{Verb: keyplan.Rotate, Name: name, Compromised: true})
}

// take takes a step and returns the error of its plan.
func (l *life) take(verb keyplan.Verb, ref string) error {
	l.Helper()
	name, version, err := keyplan.ParseRef(ref)
	if err != nil {
		l.Fatal(err)
	}
	return l.do(keyplan.Step{Verb: verb, Name: name, Version: version})
}

func (l *life) do(s keyplan.Step) error {
	l.Helper()
	l.now = l.now.Add(time.Second) // no two steps are at one time
	p, err := keyplan.New(l.Ring(), s, l.now)
	if err != nil {
		return err
	}
	c, err := keylife.Carry(l.Context(), l.Keys, p, "test")
	if err != nil {
		l.Fatal(err)
	}
	if err := l.ChangeKeys(l.Context(), c, audit.Record{}); err != nil {
		l.Fatal(err)
	}
	if err := l.Reload(l.Context(), l); err != nil {
		l.Fatal(err)
	}
	return nil
}

func (l *life) must(verb keyplan.Verb, ref string) {
	l.Helper()
	if err := l.take(verb, ref); err != nil {
		l.Fatalf("%s %s: %v", verb, ref, err)
	}
}

// state returns the state, with "+" if the version is accepted.
func (l *life) state(ref string) string {
	l.Helper()
	for _, v := range keyplan.Views(l.Ring(), l.now) {
		if keyring.Label(v.Name, v.Version) == ref {
			return string(v.State) + map[bool]string{true: "+"}[v.Accepted]
		}
	}
	return "none"
}

func (l *life) is(want map[string]string) {
	l.Helper()
	for ref, state := range want {
		if got := l.state(ref); got != state {
			l.Errorf("%s is %s, want %s", ref, got, state)
		}
	}
}

// TestLife takes steps and checks the states after them, and which steps are refused.
func TestLife(t *testing.T) {
	l := newLife(t)
	l.is(map[string]string{"kem@1": "active+", "kem@2": "pre-activation+", "root@2": "pre-activation+", "mac@1": "active+"})
	for _, c := range []struct {
		verb keyplan.Verb
		ref  string
		err  error
		then map[string]string
	}{
		{keyplan.Activate, "kem@2", keyplan.ErrStep, nil}, // not certified yet
		{keyplan.Rotate, "kem", nil, map[string]string{"kem@1": "active+", "kem@2": "pre-activation+", "kem@5": "pre-activation+", "kem@6": "none"}},
		{keyplan.Activate, "kem", nil, map[string]string{"kem@1": "deactivated+", "kem@2": "active+"}},
		{keyplan.Retire, "kem", keyplan.ErrEarly, nil},
		{keyplan.Suspend, "kem@1", nil, map[string]string{"kem@1": "suspended"}},
		{keyplan.Suspend, "kem@2", keyplan.ErrStep, nil}, // nothing could take over
		{keyplan.Resume, "kem@1", nil, map[string]string{"kem@1": "deactivated+"}},
		{keyplan.Activate, "kem@1", nil, map[string]string{"kem@1": "active+", "kem@2": "deactivated+"}},
		{keyplan.Activate, "kem@2", nil, map[string]string{"kem@1": "deactivated+", "kem@2": "active+"}},
		{keyplan.Retire, "kem@2", keyplan.ErrStep, nil},
		{keyplan.Create, "kem", keyplan.ErrStep, nil},
		{keyplan.Create, "audit", nil, map[string]string{"audit@1": "active+"}},
		{keyplan.Destroy, "kem@1", keyplan.ErrStep, nil}, // still accepted
		{keyplan.Activate, "kem@9", keyplan.ErrKeyName, nil},
		{keyplan.Rotate, "mac", nil, map[string]string{"mac@1": "active+", "mac@2": "pre-activation+"}},
		{keyplan.Rotate, "mac", nil, map[string]string{"mac@2": "pre-activation+", "mac@3": "none"}},
	} {
		if err := l.take(c.verb, c.ref); !errors.Is(err, c.err) {
			t.Fatalf("%s %s: %v, want %v", c.verb, c.ref, err, c.err)
		}
		l.is(c.then)
	}
	l.now = l.now.Add(31 * 24 * time.Hour)
	l.must(keyplan.Retire, "kem")
	l.is(map[string]string{"kem@1": "deactivated", "kem@2": "active+"})
	l.must(keyplan.Activate, "kem@1") // taken back
	l.is(map[string]string{"kem@1": "active+", "kem@2": "deactivated+"})
}

// TestUnattended: prepared epochs come into use without a step, and so does a forgotten
// rotation; there is no gap until the last prepared epoch ends.
func TestUnattended(t *testing.T) {
	l := newLife(t)
	for range 4 {
		l.must(keyplan.Rotate, "kem")
		l.must(keyplan.Activate, "kem")
	}
	l.must(keyplan.Rotate, "kem") // kem@6, and forgotten
	l.is(map[string]string{"kem@5": "active+", "kem@6": "pre-activation+", "kem@9": "pre-activation+", "kem@10": "none"})
	begin := l.now
	used := map[uint64]bool{}
	for l.now.Before(begin.Add((4*90 - 1) * 24 * time.Hour)) { // the first began a day early
		k, err := l.Current(keyring.KEM, l.now)
		if err != nil {
			t.Fatalf("after %v: %v", l.now.Sub(begin), err)
		}
		used[k.Version] = true
		l.now = l.now.Add(12 * time.Hour)
	}
	if len(used) != 5 || !used[5] || !used[9] {
		t.Errorf("versions in use one after the other: %v, want 5 to 9", used)
	}
}

// TestCompromised: once the next version is in use, a device that has its KeyCert rejects
// earlier ones; until then the KeyCert is not published.
func TestCompromised(t *testing.T) {
	l := newLife(t)
	device, err := l.TrustDocument(l.now).Resolve(l.Root().RootHash(), uint64(l.now.Unix()))
	if err != nil {
		t.Fatal(err)
	}
	follow := func() {
		t.Helper()
		mu := trust.KeyUpdate{Certs: l.UpdateCerts(1, l.now)}
		if device, err = device.Update(mu.Marshal(), uint64(l.now.Unix())); err != nil {
			t.Fatal(err)
		}
	}
	certs := len(l.TrustDocument(l.now).KeyCerts)
	l.must(keyplan.Rotate, "decision") // one that rules nothing out is certified anew
	if err := l.compromised("decision"); err != nil {
		t.Fatal(err)
	}
	if got := len(l.TrustDocument(l.now).KeyCerts); got != certs { // one more was prepared
		t.Errorf("%d KeyCerts are given out while the step waits, want %d", got, certs)
	}
	l.must(keyplan.Rotate, "decision") // which leaves what waits as it is
	l.must(keyplan.Activate, "decision")
	l.is(map[string]string{"decision@1": "compromised", "decision@2": "active+", "decision@3": "pre-activation+"})
	follow()
	if got := device.KeyCerts(trust.UseDecision); len(got) != 1 {
		t.Errorf("the device takes decisions by %d epochs, want 1", len(got))
	}
	if err := l.take(keyplan.Activate, "decision@1"); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("back to what is compromised: %v", err)
	}
	for _, name := range []string{keyring.MAC, keyring.CA, keyring.Wrap} {
		if err := l.compromised(name); !errors.Is(err, keyplan.ErrStep) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSleeperLearnsOfCompromise: a phone that slept over a decision key that was given up, and over the one after it,
// learns of both with one MU.
func TestSleeperLearnsOfCompromise(t *testing.T) {
	l := newLife(t)
	phone, err := l.TrustDocument(l.now).Resolve(l.Root().RootHash(), uint64(l.now.Unix()))
	if err != nil {
		t.Fatal(err)
	}
	old, _ := phone.Key(trust.UseDecision)
	if err := l.compromised("decision"); err != nil {
		t.Fatal(err)
	}
	l.must(keyplan.Activate, "decision")
	l.must(keyplan.Rotate, "decision")
	l.must(keyplan.Activate, "decision")
	mu := trust.KeyUpdate{Certs: l.UpdateCerts(1, l.now)}.Marshal()
	if phone, err = phone.Update(mu, uint64(l.now.Unix())); err != nil {
		t.Fatal(err)
	}
	if now, _ := phone.Key(trust.UseDecision); now.Epoch != 3 || now.MinEpoch != nil {
		t.Errorf("decision epoch %d, want 3", now.Epoch)
	}
	for _, k := range phone.ReceiptKeys(old.Raw) {
		if (k.GivenUp != 0) != (k.Epoch == 1) {
			t.Errorf("decision epoch %d is given up: %d", k.Epoch, k.GivenUp)
		}
	}
}

// TestUpdateHasOneRulingCert: an MU has the KeyCert that rules epochs out only beside one in use that does not, and only
// while the appliance stands by it.
func TestUpdateHasOneRulingCert(t *testing.T) {
	l := newLife(t)
	want := func(what string, decisions int) {
		t.Helper()
		kem, err := l.Ring().Current(keyring.KEM, l.now)
		if err != nil {
			t.Fatal(err)
		}
		got, certs := 0, l.UpdateCerts(uint8(kem.Version%64), l.now)
		for _, b := range certs {
			if k, err := trust.VerifyKeyCert(b, l.Root()); err == nil && k.Use == trust.UseDecision {
				got++
			}
		}
		if got != decisions || len(certs) != 4+decisions {
			t.Errorf("%s: an MU with %d certificates, %d of decision by this root, want %d", what, len(certs), got, decisions)
		}
	}
	want("at first", 1)
	l.must(keyplan.Rotate, "decision")
	l.must(keyplan.Activate, "decision")
	want("after a routine rotation", 1)
	if err := l.compromised("decision"); err != nil {
		t.Fatal(err)
	}
	want("while the step waits", 1)
	l.must(keyplan.Activate, "decision")
	want("in use", 1)
	l.must(keyplan.Rotate, "decision")
	l.must(keyplan.Activate, "decision")
	want("after another", 2)
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Activate, "root")
	want("under another root", 1)
	if err := l.compromised("decision"); err != nil {
		t.Fatal(err)
	}
	l.must(keyplan.Activate, "decision")
	l.must(keyplan.Rotate, "decision")
	l.must(keyplan.Activate, "decision")
	want("under the other root", 2)
	in, err := l.Ring().Current(keyring.Decision, l.now)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.do(keyplan.Step{Verb: keyplan.Retire, Name: keyring.Decision, Version: in.Version - 1, Compromised: true}); err != nil {
		t.Fatal(err)
	}
	want("once it is compromised", 1)
}

// hides is a token without the keys of one name.
type hides struct {
	hsm.Token
	name string
}

func (h hides) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := h.Token.Keys(ctx)
	return slices.DeleteFunc(keys, func(k hsm.Key) bool { return strings.HasPrefix(k.Label, h.name+"@") }), err
}

// TestRootAway: while the root is in a safe, an epoch can only come into use at its date;
// a missing key that is not a root is an outage.
func TestRootAway(t *testing.T) {
	l := newLife(t)
	l.load(hides{l.token, "root"})
	err := l.take(keyplan.Rotate, "kem")
	if !errors.Is(err, keyplan.ErrRootAway) || !strings.Contains(err.Error(), "kem@2 is certified from ") {
		t.Errorf("rotating early: %v", err)
	}
	if err := l.take(keyplan.Rotate, "root"); !errors.Is(err, keyplan.ErrRootAway) {
		t.Errorf("rotating the root: %v", err)
	}
	l.must(keyplan.Rotate, "mac")
	l.must(keyplan.Activate, "mac")
	l.now = l.now.Add(100 * 24 * time.Hour)
	l.is(map[string]string{"kem@2": "active+"})
	last := l.trust.Keys[0]
	for _, k := range l.trust.Keys {
		if k.Name == "kem" && k.NotBefore.After(last.NotBefore) {
			last = k
		}
	}
	before := l.now
	l.now = last.NotBefore.Add(time.Hour)
	if err := l.take(keyplan.Rotate, "kem"); !errors.Is(err, keyplan.ErrRootAway) || !strings.Contains(err.Error(), "another epoch of kem") {
		t.Errorf("rotating the last epoch: %v", err)
	}
	l.now = before
	if _, err := keyuse.Load(t.Context(), hides{l.token, "kem"}, l, pinned(l.trust)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("without kem: %v", err)
	}
}

// TestNoneInUse: with the root on the token, a key whose versions are all over can be
// rotated.
func TestNoneInUse(t *testing.T) {
	l := newLife(t)
	l.now = l.now.Add(20 * 365 * 24 * time.Hour)
	for _, name := range []string{"kem", "decision", "ca", "client-ca", "enrol"} {
		if _, err := l.Current(name, l.now); !errors.Is(err, keyring.ErrNoKey) {
			t.Fatalf("%s after 20 years: %v", name, err)
		}
		l.must(keyplan.Rotate, name)
		l.must(keyplan.Activate, name)
		k, err := l.Current(name, l.now)
		if err != nil || l.now.Sub(k.NotBefore) > 2*24*time.Hour {
			t.Errorf("%s is certified from %v: %v", name, k.NotBefore, err)
		}
	}
	if err := keylife.SelfTest(t.Context(), l.Keys, l.now); err != nil {
		t.Error(err)
	}
	if err := l.take(keyplan.Rotate, "audit"); !errors.Is(err, keyring.ErrNoKey) { // create makes the first
		t.Errorf("audit, of which there is none: %v", err)
	}
}

// TestRetiredIsGone: a retired key that is missing on the token is no outage. The
// attestation reports it, it cannot be resumed, and it can be destroyed.
func TestRetiredIsGone(t *testing.T) {
	l := newLife(t)
	old, err := l.Current(keyring.Decision, l.now)
	if err != nil {
		t.Fatal(err)
	}
	l.must(keyplan.Rotate, "decision")
	l.must(keyplan.Activate, "decision")
	if err := l.token.Destroy(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := keyuse.Load(t.Context(), l.token, l, pinned(l.trust)); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("gone while it is accepted: %v", err)
	}
	l.must(keyplan.Suspend, "decision@1")
	if wrong := l.attested(l.token); wrong != "0 objects" {
		t.Errorf("suspended: found %q", wrong)
	}
	if err := l.take(keyplan.Resume, "decision@1"); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("resumed: %v", err)
	}
	if err := l.do(keyplan.Step{Verb: keyplan.Retire, Name: "decision", Version: 1, Compromised: true}); err != nil {
		t.Fatal(err)
	}
	for _, k := range l.Ring().Keys() {
		if k.Name == keyring.Decision && k.Version == 1 && k.OnToken {
			t.Error("decision@1 is shown as on the token")
		}
	}
	p, err := keyplan.New(l.Ring(), keyplan.Step{Verb: keyplan.Destroy, Name: "decision", Version: 1}, l.now)
	if err != nil {
		t.Fatal(err)
	}
	l.must(keyplan.Destroy, "decision@1")
	if err := keylife.Erase(t.Context(), l.Keys, p); err != nil {
		t.Error(err)
	}
	if wrong := l.attested(l.token); wrong != "" {
		t.Errorf("destroyed: found %q", wrong)
	}
}

// TestRoots: a phone that pinned the first root follows three further ones with one key
// update, and a new root is not published before it is activated.
func TestRoots(t *testing.T) {
	l := newLife(t)
	before := l.TrustDocument(l.now)
	phone, err := before.Resolve(l.Root().RootHash(), uint64(l.now.Unix()))
	if err != nil {
		t.Fatal(err)
	}
	for root := uint64(2); root <= 4; root++ {
		certs := len(l.TrustDocument(l.now).KeyCerts)
		l.must(keyplan.Rotate, "root")
		if d := l.TrustDocument(l.now); len(d.RootCerts) != int(root)-1 || len(d.KeyCerts) != certs {
			t.Fatalf("root %d waits, and the document has %d roots and %d KeyCerts, had %d", root, len(d.RootCerts), len(d.KeyCerts), certs)
		}
		for _, verb := range []keyplan.Verb{keyplan.Rotate, keyplan.Activate} {
			if err := l.take(verb, "kem"); !errors.Is(err, keyplan.ErrStep) {
				t.Fatalf("%s kem while a root waits: %v", verb, err)
			}
		}
		l.must(keyplan.Activate, "root")
	}
	kem, _ := phone.Key(trust.UseKEM)
	if _, held := l.Recipient(t.Context(), uint8(kem.Epoch), l.now); held {
		t.Error("kem epoch of the first root is held")
	}
	mu := trust.KeyUpdate{Certs: l.UpdateCerts(uint8(kem.Epoch), l.now)}
	followed, err := phone.Update(mu.Marshal(), uint64(l.now.Unix()))
	if err != nil || followed.RootNumber != 4 || followed.Root != l.Root() {
		t.Fatalf("the phone is at root %d, %v", followed.RootNumber, err)
	}
	kem, _ = followed.Key(trust.UseKEM)
	to, held := l.Recipient(t.Context(), uint8(kem.Epoch), l.now)
	if err != nil || !held || to.Root != followed.Root.RootID() {
		t.Errorf("kem epoch %d of the new root: held %v, %v", kem.Epoch, held, err)
	}
	if err := keylife.SelfTest(t.Context(), l.Keys, l.now); err != nil {
		t.Error(err)
	}
	if err := l.take(keyplan.Activate, "root@2"); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("back to root 2: %v", err)
	}
}

// TestRootGivenUp: the RootCert says why the root before it was replaced, and a root that waits is not taken for one
// that gives the root before it up.
func TestRootGivenUp(t *testing.T) {
	l := newLife(t)
	l.must(keyplan.Rotate, "root")
	if err := l.compromised("root"); !errors.Is(err, keyplan.ErrStep) {
		t.Errorf("root 2 waits, by routine: %v", err)
	}
	l.must(keyplan.Activate, "root")
	if err := errors.Join(l.compromised("root"), l.compromised("root")); err != nil {
		t.Fatal(err)
	}
	l.must(keyplan.Activate, "root")
	for i, want := range []uint64{trust.ReasonRoutine, trust.ReasonRoutine, trust.ReasonCompromised} {
		r, err := trust.VerifyRootCert(l.TrustDocument(l.now).RootCerts[i])
		if err != nil || r.Reason != want {
			t.Errorf("root %d has reason %d, want %d, %v", i+1, r.Reason, want, err)
		}
	}
}

// TestRootTakenBack: a root that waits can be retired, and rotated to again.
func TestRootTakenBack(t *testing.T) {
	l := newLife(t)
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Retire, "root")
	l.is(map[string]string{"kem@5": "deactivated", "kem@1": "active+"})
	l.must(keyplan.Rotate, "kem")
	l.must(keyplan.Activate, "kem")
	l.must(keyplan.Rotate, "root")
	l.must(keyplan.Activate, "root")
	l.is(map[string]string{"root@2": "active+", "kem@10": "active+", "kem@11": "pre-activation+", "kem@3": "deactivated"})
}

// TestRootKeepsItsKeys: keys that a waiting root has certified cannot be given up, and a
// root that would leave a key without a version cannot be activated.
func TestRootKeepsItsKeys(t *testing.T) {
	l := newLife(t)
	l.must(keyplan.Rotate, "root")
	for _, verb := range []keyplan.Verb{keyplan.Suspend, keyplan.Retire} {
		if err := l.take(verb, "kem@5"); !errors.Is(err, keyplan.ErrStep) {
			t.Errorf("%s kem@5: %v", verb, err)
		}
	}
	i := slices.IndexFunc(l.trust.Keys, func(k store.Key) bool { return k.Name == "kem" && k.Version == 5 })
	l.trust.Keys[i].SuspendedAt = l.now // as an earlier program did
	if err := l.Reload(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if err := l.take(keyplan.Activate, "root"); !errors.Is(err, keyplan.ErrStep) || !strings.Contains(err.Error(), "no version of kem") {
		t.Errorf("activated without kem: %v", err)
	}
	l.is(map[string]string{"kem@1": "active+"})
	l.must(keyplan.Resume, "kem@5")
	l.must(keyplan.Activate, "root")
	l.is(map[string]string{"kem@5": "active+"})
}

// twins is a token with two objects of one CKA_ID.
type twins struct{ hsm.Token }

func (w twins) Keys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := w.Token.Keys(ctx)
	return append(keys, keys[0]), err
}

// TestStart: any difference between registry and token is an outage at start.
func TestStart(t *testing.T) {
	l := newLife(t)
	if _, err := keyuse.Load(t.Context(), twins{l.token}, l, pinned(l.trust)); !errors.Is(err, hsm.ErrUnavailable) || !strings.Contains(err.Error(), "2 objects") {
		t.Errorf("two objects of one id: %v", err)
	}
	if err := keylife.SelfTest(t.Context(), l.Keys, l.now); err != nil {
		t.Errorf("a whole token: %v", err)
	}
	l.load(liar{l.token})
	if err := keylife.SelfTest(t.Context(), l.Keys, l.now); !errors.Is(err, keylife.ErrSelfTest) {
		t.Errorf("a token that signs with another key: %v", err)
	}
	l.load(strayed{l.token})
	if err := keylife.SelfTest(t.Context(), l.Keys, l.now); !errors.Is(err, keylife.ErrSelfTest) {
		t.Errorf("a token that agrees on another secret: %v", err)
	}
}

// strayed is a token that agrees on another secret.
type strayed struct{ hsm.Token }

func (s strayed) Decap(ctx context.Context, key hsm.KeyID, kem hsm.KEM, enc *ecdh.PublicKey) ([]byte, error) {
	shared, err := s.Token.Decap(ctx, key, kem, enc)
	if err == nil {
		shared[0] ^= 1
	}
	return shared, err
}
