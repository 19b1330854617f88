package protocol_test

import (
	"crypto/sha256"
	"errors"
	"reflect"
	"testing"
	"time"

	lenient "github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"countersign/protocol"
	"countersign/protocol/cbor"
	ours "countersign/protocol/internal/cose"
	"countersign/protocol/internal/domain"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

func TestSignDecisionsVerify(t *testing.T) {
	p := newPKI(t)
	for _, n := range []int{1, 2, 3, 8, 13} {
		want := make([]receipt.Decision, n)
		for i := range want {
			want[i] = p.decision()
			want[i].Transaction = protocol.TransactionID{byte(n), byte(i)}
		}
		signed, err := receipt.SignAll(t.Context(), p.keys[trust.UseDecision], 1, want)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range signed {
			if got, err := p.check(t).Verify(b); err != nil || !reflect.DeepEqual(got, want[i]) {
				t.Errorf("%d of %d: got %+v, %v, want %+v", i, n, got, err, want[i])
			}
		}
	}
	if out, err := receipt.SignAll(t.Context(), p.keys[trust.UseDecision], 1, nil); out != nil || err != nil {
		t.Errorf("no decisions: got %v, %v", out, err)
	}
}

func TestSignDocuments(t *testing.T) {
	key := newKeySigner(t)
	leaves := []receipt.Leaf{{Random: [16]byte{1}, Document: []byte("one")}, {Random: [16]byte{2}}}
	signed, err := receipt.SignDocuments(t.Context(), key, 1, leaves)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"one", ""} {
		if got, err := receipt.VerifyDocument(signed[i], key.public(t)); err != nil || string(got) != want {
			t.Errorf("document %d is %q, %v, want %q", i, got, err, want)
		}
	}
}

// stockVerifier is the ES256 verifier of a COSE library that does not know OA1.
func stockVerifier(t *testing.T, key keySigner) cose.Verifier {
	t.Helper()
	v, err := cose.NewVerifier(cose.AlgorithmES256, &key.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStockLibraryVerifiesDecision(t *testing.T) {
	p := newPKI(t)
	b, err := receipt.Sign(t.Context(), p.keys[trust.UseDecision], 1, p.decision())
	if err != nil {
		t.Fatal(err)
	}
	var m cose.UntaggedSign1Message
	if err := m.UnmarshalCBOR(b); err != nil {
		t.Fatal(err)
	}
	if err := m.Verify([]byte(domain.Decision), stockVerifier(t, p.keys[trust.UseDecision])); err != nil {
		t.Errorf("decision: %v", err)
	}
	if err := m.Verify([]byte(domain.KeyCert), stockVerifier(t, p.keys[trust.UseDecision])); !errors.Is(err, cose.ErrVerification) {
		t.Errorf("decision under another domain string: got %v, want ErrVerification", err)
	}
}

func TestStockLibraryVerifiesSignReceipt(t *testing.T) {
	key := newKeySigner(t)
	leaves := []receipt.Leaf{{Random: [16]byte{1}, Document: []byte("one")}, {Random: [16]byte{2}, Document: []byte("two")}}
	signed, err := receipt.SignDocuments(t.Context(), key, 7, leaves)
	if err != nil {
		t.Fatal(err)
	}
	var w struct {
		_       struct{} `cbor:",toarray"`
		Receipt []byte
		Leaf    []byte
	}
	if err := cbor.Unmarshal(signed[0], &w); err != nil {
		t.Fatal(err)
	}
	var m cose.UntaggedSign1Message
	if err := m.UnmarshalCBOR(w.Receipt); err != nil {
		t.Fatal(err)
	}
	root := receipt.MerkleRoot([][]byte{cbor.Marshal(leaves[0]), cbor.Marshal(leaves[1])})
	m.Payload = root[:]
	if err := m.Verify(nil, stockVerifier(t, key)); err != nil {
		t.Errorf("receipt: %v", err)
	}
	m.Payload = make([]byte, sha256.Size)
	if err := m.Verify(nil, stockVerifier(t, key)); !errors.Is(err, cose.ErrVerification) {
		t.Errorf("receipt over another root: got %v, want ErrVerification", err)
	}
}

// TestLooseCOSE covers items that a lenient CBOR library would accept.
func TestLooseCOSE(t *testing.T) {
	p := newPKI(t)
	var s ours.Sign1
	if err := cbor.Unmarshal(p.certs[0], &s); err != nil {
		t.Fatal(err)
	}
	sig := make([]uint64, len(s.Signature))
	for i, b := range s.Signature {
		sig[i] = uint64(b)
	}
	for name, items := range map[string][]any{
		"unprotected null":         {s.Protected, nil, s.Payload, s.Signature},
		"signature as array":       {s.Protected, map[int64]any{}, s.Payload, sig},
		"payload null":             {s.Protected, map[int64]any{}, nil, s.Signature},
		"signature of 65 bytes":    {s.Protected, map[int64]any{}, s.Payload, append([]byte{0}, s.Signature...)},
		"key of 32 bytes, shorter": {s.Protected, map[int64]any{}, cbor.Marshal(map[int]any{1: 1, 2: 1, 3: make([]byte, 32), 4: 0, 5: 1}), s.Signature},
		"null for the epoch":       {s.Protected, map[int64]any{}, cbor.Marshal(map[int]any{1: nil, 2: 1, 3: make([]byte, 33), 4: 0, 5: 1}), s.Signature},
	} {
		if _, err := trust.VerifyKeyCert(cbor.Marshal(items), p.root.public(t)); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%s: got %v, want a format error", name, err)
		}
	}
}

func TestNullProofInEvidence(t *testing.T) {
	d := newPKI(t).decision()
	d.Evidence = []receipt.Evidence{{Statement: message.Statement{1}, ClientCert: []byte{2}, Approval: message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning}}}
	good := d.Marshal()
	if got, err := receipt.Parse(good); err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("got %+v, %v, want %+v", got, err, d)
	}
	var m map[uint64]any
	if err := lenient.Unmarshal(good, &m); err != nil {
		t.Fatal(err)
	}
	m[16].([]any)[3] = nil
	if _, err := receipt.Parse(cbor.Marshal(m)); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("null for the proof: got %v, want a format error", err)
	}
}

func TestLifetimeBeyondDuration(t *testing.T) {
	p := newPKI(t)
	d := p.decision()
	d.Lifetime = 1<<64 - 1
	b, err := receipt.Sign(t.Context(), p.keys[trust.UseDecision], 1, d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.check(t).Verify(b); err != nil {
		t.Errorf("longest lifetime: %v", err)
	}
}

// TestCheckBounds: a decision is good at the end of its lifetime and at the device's floor, and not beyond.
func TestCheckBounds(t *testing.T) {
	p := newPKI(t)
	d := p.decision()
	b, err := receipt.Sign(t.Context(), p.keys[trust.UseDecision], 1, d)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Duration(d.Lifetime) * time.Second
	for name, c := range map[string]struct {
		change func(*receipt.Check)
		want   error
	}{
		"at the end":          {func(c *receipt.Check) { c.Elapsed = end }, nil},
		"after the end":       {func(c *receipt.Check) { c.Elapsed = end + 1 }, protocol.CodeExpired},
		"at the floor":        {func(c *receipt.Check) { c.Floor = d.Level }, nil},
		"below the floor":     {func(c *receipt.Check) { c.Floor = d.Level + 1 }, protocol.CodeLevel},
		"without a challenge": {func(c *receipt.Check) { c.Challenges = nil }, protocol.CodeReplayed},
		"without an amount":   {func(c *receipt.Check) { c.Amount = nil }, nil},
	} {
		check := p.check(t)
		c.change(&check)
		if _, err := check.Verify(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func BenchmarkSignDecision(b *testing.B) {
	p := newPKI(b)
	d := p.decision()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := receipt.Sign(b.Context(), p.keys[trust.UseDecision], 1, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecisionCheckVerify(b *testing.B) {
	p := newPKI(b)
	check := p.check(b)
	signed, err := receipt.Sign(b.Context(), p.keys[trust.UseDecision], 1, p.decision())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := check.Verify(signed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignDecisions64(b *testing.B) {
	p := newPKI(b)
	list := make([]receipt.Decision, 64)
	for i := range list {
		list[i] = p.decision()
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := receipt.SignAll(b.Context(), p.keys[trust.UseDecision], 1, list); err != nil {
			b.Fatal(err)
		}
	}
}

// TestEvidenceFormatFirst: a strict device reports malformed evidence before a certificate that it cannot
// verify, also if the two are of different countersignatures (PROTOCOL.md §3.1).
func TestEvidenceFormatFirst(t *testing.T) {
	p := newPKI(t)
	check := p.check(t)
	check.Strict = true
	newest := check.Challenges[0]
	check.Challenges = []protocol.Challenge{{9}, newest}
	cert := func(by keySigner) []byte {
		key := newKeySigner(t).public(t)
		b, err := trust.SignClientCert(t.Context(), by, 1, trust.ClientCert{
			Client: protocol.ClientIDOf(key), SigningKey: key, NotBefore: vectorTime, NotAfter: vectorTime + 3600,
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p1 := message.P1{Client: protocol.ClientID{1}, Serial: protocol.NewSerial(1, [8]byte{}), Service: 1027, Level: 2}.Marshal()
	p2 := message.P2{TTL: 60, Now: vectorTime, Level: 2, Factors: 3, Device: testDevice.Handle(), DeviceName: "gate"}.Marshal()
	statement := message.NewStatement(p.root.public(t).RootID(), p1, newest, p2)
	stranger, known, malformed := cert(newKeySigner(t)), cert(p.keys[trust.UseClientCA]), []byte{0xff}
	for name, c := range map[string]struct {
		certs [2][]byte
		want  error
	}{
		"a stranger's, and malformed": {[2][]byte{stranger, malformed}, protocol.CodeFormat},
		"malformed, and a stranger's": {[2][]byte{malformed, stranger}, protocol.CodeFormat},
		"known, and a stranger's":     {[2][]byte{known, stranger}, protocol.CodeCertificate},
		"both known":                  {[2][]byte{known, known}, protocol.CodeSignature},
	} {
		d := p.decision()
		d.SecondStatement = &[32]byte{2}
		for _, one := range c.certs {
			d.Evidence = append(d.Evidence, receipt.Evidence{
				Statement: statement, ClientCert: one, Approval: message.Approval{Verdict: protocol.Approve, Slot: protocol.SlotSigning},
			})
		}
		b, err := receipt.Sign(t.Context(), p.keys[trust.UseDecision], 1, d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := check.Verify(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
