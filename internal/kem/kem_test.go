package kem_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"countersign/internal/kem"
)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// agree returns Z, enc and enc || pkR.
func agree(t *testing.T, recipient *ecdh.PrivateKey, sender *ecdh.PublicKey) (z, context []byte) {
	t.Helper()
	z, err := recipient.ECDH(sender)
	if err != nil {
		t.Fatal(err)
	}
	return z, slices.Concat(sender.Bytes(), recipient.PublicKey().Bytes())
}

// hashed is the shared secret by the hash of a token.
func hashed(id kem.ID, z, context []byte) []byte {
	before, after, finish := id.Hashed()
	hash := sha256.Sum256(slices.Concat(before, z, after))
	return finish(hash[:], context)
}

// TestRFC9180 computes the vector of RFC 9180 appendix A.3.1, whole and by the hash of a token.
func TestRFC9180(t *testing.T) {
	recipient, err := ecdh.P256().NewPrivateKey(unhex(t, "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2"))
	if err != nil {
		t.Fatal(err)
	}
	sender, err := ecdh.P256().NewPublicKey(unhex(t, "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac9"+
		"8536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4"))
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8")
	z, context := agree(t, recipient, sender)
	if got := kem.DHKEM.Secret(z, context); !bytes.Equal(got, want) {
		t.Errorf("shared secret %x, want %x", got, want)
	}
	if got := hashed(kem.DHKEM, z, context); !bytes.Equal(got, want) {
		t.Errorf("of the hash of a token: %x, want %x", got, want)
	}
}

// TestVectors computes the shared secrets of protocol/testdata/suite2.json.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile("../../protocol/testdata/suite2.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Op string
			In       struct {
				Recipient string `json:"sk_r"`
			}
			Out struct {
				Enc    string
				Shared string `json:"shared_secret"`
			}
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, v := range file.Vectors {
		if v.Op != "hpke" || v.Out.Shared == "" {
			continue
		}
		recipient, err := ecdh.P256().NewPrivateKey(unhex(t, v.In.Recipient))
		if err != nil {
			t.Fatal(err)
		}
		sender, err := ecdh.P256().NewPublicKey(unhex(t, v.Out.Enc))
		if err != nil {
			t.Fatal(err)
		}
		z, context := agree(t, recipient, sender)
		if got := kem.KEM2.Secret(z, context); hex.EncodeToString(got) != v.Out.Shared {
			t.Errorf("%s: %x, want %s", v.Name, got, v.Out.Shared)
		}
		if got := hashed(kem.KEM2, z, context); hex.EncodeToString(got) != v.Out.Shared {
			t.Errorf("%s: of the hash of a token: %x, want %s", v.Name, got, v.Out.Shared)
		}
		tried++
	}
	if tried < 3 {
		t.Errorf("%d vectors", tried)
	}
}

// TestLabels: with them, the schedule of crypto/hpke opens what DHKEM encapsulated.
func TestLabels(t *testing.T) {
	recipient, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := hpke.NewDHKEMPublicKey(recipient.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	enc, sender, err := hpke.NewSender(public, hpke.HKDFSHA256(), hpke.AES128GCM(), []byte("info"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := sender.Export("x", 32)
	if err != nil {
		t.Fatal(err)
	}
	point, err := ecdh.P256().NewPublicKey(enc)
	if err != nil {
		t.Fatal(err)
	}
	z, context := agree(t, recipient, point)
	l := kem.Labels(append(binary.BigEndian.AppendUint16([]byte("HPKE"), kem.DHKEM.HPKE()), 0, 1, 0, 1))
	scheduled := slices.Concat([]byte{0}, l.Extract(nil, "psk_id_hash", nil), l.Extract(nil, "info_hash", []byte("info")))
	secret := l.Extract(kem.DHKEM.Secret(z, context), "secret", nil)
	if got := l.Expand(l.Expand(secret, "exp", scheduled, 32), "sec", []byte("x"), 32); !bytes.Equal(got, want) {
		t.Errorf("exported %x, want %x", got, want)
	}
}

// TestKnown: two suites are known.
func TestKnown(t *testing.T) {
	for id, want := range map[kem.ID]bool{0: false, kem.DHKEM: true, kem.KEM2: true, 3: false} {
		if id.Known() != want {
			t.Errorf("%s known: %v", id, !want)
		}
	}
}
