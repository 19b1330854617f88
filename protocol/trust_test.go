package protocol_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	"countersign/protocol"
	"countersign/protocol/trust"
)

func TestTrustPersists(t *testing.T) {
	p := newPKI(t)
	doc := p.document(t)
	doc.KeyCerts = append(doc.KeyCerts, p.certify(t, trust.UseDecision, 2), p.certify(t, trust.UseKEM, 50))
	pinned, err := doc.Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	old, err := json.Marshal(pinned)
	if err != nil || bytes.Contains(old, []byte("shown")) {
		t.Fatalf("a state that nothing was shown to has another form than those of earlier releases: %s, %v", old, err)
	}
	pinned = pinned.Show(trust.Shown{Use: trust.UseKEM, Epoch: 1, Now: vectorTime})
	stored, err := json.Marshal(pinned)
	if err != nil {
		t.Fatal(err)
	}
	var loaded trust.State
	if err := json.Unmarshal(stored, &loaded); err != nil {
		t.Fatal(err)
	}
	if len(pinned.Earlier) != 1 || len(pinned.Later) != 1 || !reflect.DeepEqual(loaded, pinned) {
		t.Errorf("loaded\n%+v, want\n%+v", loaded, pinned)
	}
}

func TestTrustWithoutKeysPersists(t *testing.T) {
	want := trust.State{Root: newKeySigner(t).public(t), RootNumber: 1}
	stored, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var loaded trust.State
	if err := json.Unmarshal(stored, &loaded); err != nil || !reflect.DeepEqual(loaded, want) {
		t.Errorf("loaded %+v, %v, want %+v", loaded, err, want)
	}
}

func TestTrustLoadVerifies(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	pinned := p.trust(t)
	pinned.Root = other.root.public(t)
	stored, err := json.Marshal(pinned)
	if err != nil {
		t.Fatal(err)
	}
	var loaded trust.State
	if err := json.Unmarshal(stored, &loaded); !errors.Is(err, protocol.CodeCertificate) {
		t.Errorf("loading certificates of another root: got %v, want a certificate error", err)
	}
	if err := json.Unmarshal([]byte(`{"root_key":""}`), &loaded); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("loading no key: got %v, want a format error", err)
	}
}

func TestTrustAdoptsWhenTimeComes(t *testing.T) {
	p := newPKI(t)
	const epoch = 50
	begins := uint64(vectorTime + 3600*(epoch-1) - clockSlack)
	doc := p.document(t)
	doc.KeyCerts = append(doc.KeyCerts, p.certify(t, trust.UseKEM, epoch))
	pinned, err := doc.Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		now   uint64
		epoch uint64
	}{{vectorTime, 1}, {begins - 1, 1}, {begins, epoch}, {vectorTime, epoch}} {
		pinned = pinned.Adopt(step.now)
		if k, ok := pinned.Key(trust.UseKEM); !ok || k.Epoch != step.epoch {
			t.Errorf("at %d: kem epoch %d, want %d", step.now, k.Epoch, step.epoch)
		}
	}
	if k, ok := pinned.KeyAt(trust.UseKEM, 1); !ok || k.Epoch != 1 {
		t.Errorf("epoch 1 is not kept beside epoch %d", epoch)
	}
	if got := pinned.Time(0); got != begins+clockSlack {
		t.Errorf("time is %d, want the newest not-before %d", got, begins+clockSlack)
	}
}

func TestTrustMinimumEpoch(t *testing.T) {
	p := newPKI(t)
	minimum := uint64(2)
	pinned := p.trust(t)
	cert := p.sign(t, trust.KeyCert{
		Epoch: 2, Use: trust.UseDecision, Key: p.keys[trust.UseDecision].public(t), NotBefore: vectorTime, NotAfter: vectorTime + 1, MinEpoch: &minimum,
	})
	updated, err := pinned.Update(trust.KeyUpdate{Certs: [][]byte{cert}}.Marshal(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	if got := updated.KeyCerts(trust.UseDecision); len(got) != 1 || !bytes.Equal(got[0], cert) {
		t.Errorf("%d decision certificates are left, want the new one only", len(got))
	}
	if got := pinned.KeyCerts(trust.UseDecision); len(got) != 1 || !bytes.Equal(got[0], p.certs[1]) {
		t.Error("Update changed the Trust it was called on")
	}
}

// TestShowForgets: what ended 30 days before the time that the appliance has shown is forgotten, but for minimum epochs
// and keys of decision.
func TestShowForgets(t *testing.T) {
	for use, forgotten := range map[trust.Use]bool{trust.UseClientCA: true, trust.UseDecision: false} {
		t.Run(use.String(), func(t *testing.T) { showForgets(t, use, forgotten) })
	}
}

func showForgets(t *testing.T, use trust.Use, forgotten bool) {
	p := newPKI(t)
	pinned := p.trust(t)
	minimum := uint64(2)
	for epoch := uint64(2); epoch <= 4; epoch++ {
		k := trust.KeyCert{
			Epoch: epoch, Use: use, Key: p.keys[use].public(t),
			NotBefore: vectorTime, NotAfter: vectorTime + 100*clockSlack*epoch,
		}
		if epoch == minimum {
			k.MinEpoch = &minimum
		}
		var err error
		if pinned, err = pinned.Update(trust.KeyUpdate{Certs: [][]byte{p.sign(t, k)}}.Marshal(), vectorTime); err != nil {
			t.Fatal(err)
		}
	}
	last := []uint64{2, 3}
	if forgotten {
		last = []uint64{2}
	}
	for days, want := range map[uint64][]uint64{0: {2, 3}, 329: {2, 3}, 330: last} {
		shown := pinned.Show(trust.Shown{Use: trust.UseKEM, Epoch: 1, Now: vectorTime + days*clockSlack})
		var left []uint64
		for _, k := range shown.Earlier {
			left = append(left, k.Epoch)
		}
		if !slices.Equal(left, want) {
			t.Errorf("after %d days epochs %v are left, want %v", days, left, want)
		}
	}
}

// TestEarlierIsBounded: a party that is shown nothing, as a device, forgets the oldest epochs.
func TestEarlierIsBounded(t *testing.T) {
	p := newPKI(t)
	pinned := p.trust(t)
	for epoch := uint64(2); epoch <= 100; epoch++ {
		k := trust.KeyCert{Epoch: epoch, Use: trust.UseKEM, Key: p.keys[trust.UseKEM].public(t), NotBefore: vectorTime, NotAfter: vectorTime}
		var err error
		if pinned, err = pinned.Update(trust.KeyUpdate{Certs: [][]byte{p.sign(t, k)}}.Marshal(), vectorTime); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(pinned.Earlier); n != 64 || pinned.Earlier[0].Epoch != 36 || pinned.Earlier[n-1].Epoch != 99 {
		t.Errorf("%d earlier epochs, the first %d", n, pinned.Earlier[0].Epoch)
	}
}

func TestKEMGrace(t *testing.T) {
	k := trust.KeyCert{NotAfter: 1000}
	for now, want := range map[uint64]bool{0: true, 1000: true, 999 + kemGrace: true, 1000 + kemGrace: false} {
		if got := k.TakesM2At(now); got != want {
			t.Errorf("M2 at %d: %t, want %t", now, got, want)
		}
	}
}

func TestTrustDocumentJSON(t *testing.T) {
	doc := newPKI(t).document(t)
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	got, err := trust.ParseDocument(b)
	if err != nil || !reflect.DeepEqual(got, doc) {
		t.Errorf("got %+v, %v, want %+v", got, err, doc)
	}
}

func TestUseNames(t *testing.T) {
	for use, want := range map[trust.Use]string{
		trust.UseKEM: "kem", trust.UseDecision: "decision", trust.UseCA: "ca", trust.UseEnrol: "enrol", trust.UseClientCA: "client-ca", 6: "use 6",
	} {
		if got := use.String(); got != want {
			t.Errorf("%d is %q, want %q", use, got, want)
		}
	}
}
