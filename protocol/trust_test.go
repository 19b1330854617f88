package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

func TestTrustPersists(t *testing.T) {
	p := newPKI(t)
	doc := p.document(t)
	doc.KeyCerts = append(doc.KeyCerts, p.certify(t, UseDecision, 2), p.certify(t, UseKEM, 50))
	trust, err := doc.Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := json.Marshal(trust)
	if err != nil {
		t.Fatal(err)
	}
	var loaded Trust
	if err := json.Unmarshal(stored, &loaded); err != nil {
		t.Fatal(err)
	}
	if len(trust.Earlier) != 1 || len(trust.Later) != 1 || !reflect.DeepEqual(loaded, trust) {
		t.Errorf("loaded\n%+v, want\n%+v", loaded, trust)
	}
}

func TestTrustWithoutKeysPersists(t *testing.T) {
	want := Trust{Root: newKeySigner(t).public(t), RootNumber: 1}
	stored, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var loaded Trust
	if err := json.Unmarshal(stored, &loaded); err != nil || !reflect.DeepEqual(loaded, want) {
		t.Errorf("loaded %+v, %v, want %+v", loaded, err, want)
	}
}

func TestTrustLoadVerifies(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	trust := p.trust(t)
	trust.Root = other.root.public(t)
	stored, err := json.Marshal(trust)
	if err != nil {
		t.Fatal(err)
	}
	var loaded Trust
	if err := json.Unmarshal(stored, &loaded); !errors.Is(err, CodeCertificate) {
		t.Errorf("loading certificates of another root: got %v, want a certificate error", err)
	}
	if err := json.Unmarshal([]byte(`{"root_key":""}`), &loaded); !errors.Is(err, CodeFormat) {
		t.Errorf("loading no key: got %v, want a format error", err)
	}
}

func TestTrustAdoptsWhenTimeComes(t *testing.T) {
	p := newPKI(t)
	const epoch = 50
	begins := uint64(vectorTime + 3600*(epoch-1) - clockSlack)
	doc := p.document(t)
	doc.KeyCerts = append(doc.KeyCerts, p.certify(t, UseKEM, epoch))
	trust, err := doc.Resolve(p.root.public(t).RootHash(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		now   uint64
		epoch uint64
	}{{vectorTime, 1}, {begins - 1, 1}, {begins, epoch}, {vectorTime, epoch}} {
		trust = trust.Adopt(step.now)
		if k, ok := trust.Key(UseKEM); !ok || k.Epoch != step.epoch {
			t.Errorf("at %d: kem epoch %d, want %d", step.now, k.Epoch, step.epoch)
		}
	}
	if k, ok := trust.KeyAt(UseKEM, 1); !ok || k.Epoch != 1 {
		t.Errorf("epoch 1 is not kept beside epoch %d", epoch)
	}
	if got := trust.Time(0); got != begins+clockSlack {
		t.Errorf("time is %d, want the newest not-before %d", got, begins+clockSlack)
	}
}

func TestTrustMinimumEpoch(t *testing.T) {
	p := newPKI(t)
	minimum := uint64(2)
	trust := p.trust(t)
	cert := p.sign(t, KeyCert{
		Epoch: 2, Use: UseDecision, Key: p.keys[UseDecision].public(t), NotBefore: vectorTime, NotAfter: vectorTime + 1, MinEpoch: &minimum,
	})
	updated, err := trust.Update(KeyUpdate{Certs: [][]byte{cert}}.Marshal(), vectorTime)
	if err != nil {
		t.Fatal(err)
	}
	if got := updated.KeyCerts(UseDecision); len(got) != 1 || !bytes.Equal(got[0], cert) {
		t.Errorf("%d decision certificates are left, want the new one only", len(got))
	}
	if got := trust.KeyCerts(UseDecision); len(got) != 1 || !bytes.Equal(got[0], p.certs[1]) {
		t.Error("Update changed the Trust it was called on")
	}
}

func TestKEMGrace(t *testing.T) {
	k := KeyCert{NotAfter: 1000}
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
	got, err := ParseTrustDocument(b)
	if err != nil || !reflect.DeepEqual(got, doc) {
		t.Errorf("got %+v, %v, want %+v", got, err, doc)
	}
}

func TestUseNames(t *testing.T) {
	for use := UseKEM; use <= UseClientCA; use++ {
		if got, err := ParseUse(use.String()); got != use || err != nil {
			t.Errorf("%v parses as %v, %v", use, got, err)
		}
	}
	if _, err := ParseUse("root"); !errors.Is(err, CodeFormat) {
		t.Errorf("use root: got %v, want a format error", err)
	}
}
