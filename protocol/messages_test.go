package protocol_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/veraison/go-cose"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/domain"
	"countersign/protocol/message"
	"countersign/protocol/trust"
)

// TestSizes checks the sizes in PROTOCOL.md §3.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		level              protocol.Level
		m1, m2, m3, m4, of int
	}{
		{level: 1, m1: 82, m2: 74, m3: 88, m4: 31, of: 275},
		{level: 2, m1: 82, m2: 108, m3: 106, m4: 31, of: 327},
	} {
		t.Run(fmt.Sprint("level ", c.level), func(t *testing.T) {
			s := newSession(t, c.level)
			s.run(t)
			got := [...]int{len(s.m1), len(s.m2), len(s.m3), len(s.m4)}
			if want := [...]int{c.m1, c.m2, c.m3, c.m4}; got != want {
				t.Errorf("sizes are %v, want %v", got, want)
			}
			if sum := got[0] + got[1] + got[2] + got[3]; sum != c.of {
				t.Errorf("sum is %d, want %d", sum, c.of)
			}
		})
	}
}

// TestStockLibraryVerifies verifies a countersignature with a COSE library, as a COSE_Sign1 with
// detached payload.
func TestStockLibraryVerifies(t *testing.T) {
	s := newSession(t, 2)
	stmt, approval := message.NewStatement(s.root, s.p1, s.chal, s.p2), s.approval()
	sig, err := message.Countersign(context.Background(), s.client, stmt, approval)
	mustOpen(t, "countersignature", err)
	wire := cbor.Marshal([]any{protectedES256, map[int64]any{}, nil, sig[:]})

	var m cose.UntaggedSign1Message
	mustOpen(t, "COSE_Sign1", m.UnmarshalCBOR(wire))
	if m.Payload != nil {
		t.Fatalf("payload is %x, want it detached", m.Payload)
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmES256, &s.client.key.PublicKey)
	mustOpen(t, "verifier", err)
	m.Payload = payloadOf(stmt, approval)
	if err := m.Verify([]byte("OA1 countersign v1"), verifier); err != nil {
		t.Errorf("stock library: %v", err)
	}
	approval.Verdict = protocol.Refuse
	m.Payload = payloadOf(stmt, approval)
	if err := m.Verify([]byte("OA1 countersign v1"), verifier); err == nil {
		t.Error("stock library takes an approval for a refusal")
	}
}

var errHSM = fmt.Errorf("token removed: %w", protocol.CodeHSM)

// brokenKey is a kem key in a removed HSM.
type brokenKey struct{ *ecdh.PrivateKey }

func (brokenKey) ECDH(*ecdh.PublicKey) ([]byte, error) { return nil, errHSM }

func TestOpenM1PassesKeyErrors(t *testing.T) {
	s := newSession(t, 1)
	s.run(t)
	key := message.NewKEM(message.Suite1, brokenKey{must(ecdh.P256().GenerateKey(rand.Reader))})
	m1, err := message.ParseM1(s.m1)
	mustOpen(t, "M1", err)
	if _, _, err := m1.Open(key, s.root); !errors.Is(err, errHSM) {
		t.Errorf("got %v, want the key's own error", err)
	}
}

// TestStockHPKE: suite 1 is HPKE of the standard library, in both directions.
func TestStockHPKE(t *testing.T) {
	s := newSession(t, 1)
	own := must(ecdh.P256().GenerateKey(rand.Reader))
	private, public := must(hpke.NewDHKEMPrivateKey(own)), must(hpke.NewDHKEMPublicKey(own.PublicKey()))
	s.kemKey = must(protocol.CompressPoint(own.PublicKey().Bytes()))
	m1, es, err := message.SealM1(s.recipient(), s.p1)
	mustOpen(t, "M1", err)
	enc := must(protocol.PublicKey(m1[2:35]).ECDH()).Bytes()
	stock := must(hpke.NewRecipient(enc, private, hpke.HKDFSHA256(), hpke.AES128GCM(), hpkeInfo(s.root)))
	if p1, err := stock.Open(m1[:2], m1[35:]); err != nil || !bytes.Equal(p1, s.p1) {
		t.Errorf("stock library opens %x, %v", p1, err)
	}
	if exported := must(stock.Export(domain.Session, len(es))); !bytes.Equal(exported, es[:]) {
		t.Errorf("stock library exports %x, want %x", exported, es[:])
	}

	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES128GCM(), hpkeInfo(s.root))
	mustOpen(t, "stock sender", err)
	head := []byte{0x11, 16}
	sealed := must(sender.Seal(head, s.p1))
	point := must(protocol.CompressPoint(enc))
	parsed := must(message.ParseM1(concat(head, point[:], sealed)))
	p1, es, err := parsed.Open(message.NewKEM(message.Suite1, own), s.root)
	if exported := must(sender.Export(domain.Session, len(es))); err != nil || !bytes.Equal(p1, s.p1) || !bytes.Equal(exported, es[:]) {
		t.Errorf("an M1 of the stock library opens as %x, %v", p1, err)
	}
}

func TestKind(t *testing.T) {
	for _, c := range []struct {
		m    []byte
		kind byte
		code protocol.Code
	}{
		{m: []byte{0x11}, kind: message.KindM1},
		{m: []byte{0x21}, kind: message.KindM2},
		{m: []byte{0x31}, kind: message.KindM3},
		{m: []byte{0x41}, kind: message.KindM4},
		{m: []byte{0x51}, kind: message.KindKeyUpdate},
		{m: []byte{0xE1}, kind: message.KindLinkError},
		{m: nil, code: protocol.CodeFormat},
		{m: []byte{0x01}, code: protocol.CodeFormat},
		{m: []byte{0x61}, code: protocol.CodeFormat},
		{m: []byte{0xF1}, code: protocol.CodeFormat},
		{m: []byte{0x12}, code: protocol.CodeVersion},
		{m: []byte{0x62}, code: protocol.CodeVersion},
	} {
		kind, err := message.Kind(c.m)
		if code, _ := protocol.CodeOf(err); kind != c.kind || code != c.code {
			t.Errorf("%x is kind %d, %v; want %d, code %d", c.m, kind, err, c.kind, c.code)
		}
	}
}

func TestLinkError(t *testing.T) {
	want := message.LinkError{Code: protocol.CodeTimeout, Retry: 7}
	mustEqual(t, "ME", want.Marshal(), []byte{0xE1, 33, 7})
	got, err := message.ParseLinkError(want.Marshal())
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range [][]byte{{0xE1, 1}, {0xE1, 1, 0, 0}, {0x41, 1, 0}, nil} {
		if code, _ := protocol.CodeOf(second(message.ParseLinkError(bad))); code != protocol.CodeFormat {
			t.Errorf("%x: code %d, want 1", bad, code)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestKeyUpdate(t *testing.T) {
	item := []byte{0x81, 0x01}
	u := trust.KeyUpdate{Certs: [][]byte{item, {0x02}}}
	mustEqual(t, "MU", u.Marshal(), []byte{0x51, 2, 0x81, 0x01, 0x02})
	got, err := trust.ParseKeyUpdate(u.Marshal())
	if err != nil || len(got.Certs) != 2 || !bytes.Equal(got.Certs[0], item) {
		t.Errorf("got %x, %v", got.Certs, err)
	}
	nine := append([]byte{0x51, 9}, bytes.Repeat([]byte{1}, 9)...)
	for name, bad := range map[string][]byte{
		"nine":      nine,
		"too few":   {0x51, 2, 0x01},
		"trailing":  {0x51, 1, 0x01, 0x01},
		"truncated": {0x51, 1, 0x82, 0x01},
		"no count":  {0x51},
	} {
		if code, _ := protocol.CodeOf(second(trust.ParseKeyUpdate(bad))); code != protocol.CodeFormat {
			t.Errorf("%s: code %d, want 1", name, code)
		}
	}
}

// TestChannelRefuses covers messages from a relay or a confused peer.
func TestChannelRefuses(t *testing.T) {
	s := newSession(t, 1)
	s.run(t)
	other := newSession(t, 1)
	other.run(t)
	other.m2[20] ^= 1
	for name, err := range map[string]error{
		"M2 of another session": second(s.client1.OpenM2(other.m2)),
		"M1 for M2":             second(s.client1.OpenM2(s.m1)),
		"short M2":              second(s.client1.OpenM2(s.m2[:32])),
		"M3 for M4":             second(s.client1.OpenM4(s.m3, s.m3)),
		"short M4":              second(s.client1.OpenM4(s.m3, s.m4[:25])),
		"M4 for M3":             second(s.client1.OpenM4(s.m4, s.m4)),
		"M4 of another attempt": second(s.client1.OpenM4(s.client1.SealM3(1, nil), s.m4)),
		"challenge of M3":       second(message.ChallengeOf(s.m3)),
	} {
		if code, _ := protocol.CodeOf(err); code != protocol.CodeFormat {
			t.Errorf("%s: got %v, want code 1", name, err)
		}
	}
	if _, _, err := s.server.OpenM3(s.m3[:17]); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("short M3: %v", err)
	}
}

func TestStatement(t *testing.T) {
	s := newSession(t, 2)
	stmt := message.NewStatement(s.root, s.p1, s.chal, s.p2)
	f, err := message.ParseStatement(stmt)
	mustOpen(t, "statement", err)
	if f.Root != s.root || f.Challenge != s.chal || f.P1.Service != 1027 || f.P2.Text != "Order 88213, 1 laptop" {
		t.Errorf("got %+v", f)
	}
	mustEqual(t, "P1", f.RawP1, s.p1)
	mustEqual(t, "P2", f.RawP2, s.p2)
	failed := message.P2{Code: protocol.CodeLevel}.Marshal()
	for name, bad := range map[string][]byte{
		"trailing": append(bytes.Clone(stmt), 0),
		"P1":       message.NewStatement(s.root, nil, s.chal, s.p2),
		"P2":       message.NewStatement(s.root, s.p1, s.chal, s.p1),
		"error P2": message.NewStatement(s.root, s.p1, s.chal, failed),
		"domain":   bytes.Replace(stmt, []byte("statement v1"), []byte("statement v2"), 1),
		"map":      s.p1,
		"root":     cbor.Marshal([]any{domain.Statement, s.root[:7], s.p1, s.chal[:], s.p2}),
		"four":     cbor.Marshal([]any{domain.Statement, s.root[:], s.p1, s.chal[:]}),
	} {
		if code, _ := protocol.CodeOf(second(message.ParseStatement(bad))); code != protocol.CodeFormat {
			t.Errorf("%s: code %d, want 1", name, code)
		}
	}
}
