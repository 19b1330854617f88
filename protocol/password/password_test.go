package password

import (
	"bytes"
	"crypto/ecdh"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"countersign/internal/secret"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/message"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type vector struct {
	Name   string
	Op     string
	Expect any
	In     struct {
		ClientID                       hexBytes `json:"client_id"`
		SigningKey                     hexBytes `json:"signing_key"`
		RootKey                        hexBytes `json:"root_key"`
		EnrolSK                        hexBytes `json:"enrol_sk"`
		EphSK                          hexBytes `json:"eph_sk"`
		Salt, DS, Stmt, Eph33, Wrapped hexBytes
		Password                       string
		MemoryKiB                      uint32 `json:"memory_kib"`
		Iterations                     uint32
		Parallelism                    uint8
	}
	Out map[string]hexBytes
}

func loadVectors(t *testing.T) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/password.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Vectors []vector }
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) == 0 {
		t.Fatal("no vectors")
	}
	return doc.Vectors
}

func TestVectors(t *testing.T) {
	for _, v := range loadVectors(t) {
		t.Run(v.Op+"/"+v.Name, func(t *testing.T) {
			var got map[string][]byte
			var err error
			switch v.Op {
			case "password":
				got, err = v.stretch()
			case "unwrap":
				got, err = v.unwrap()
			default:
				t.Fatalf("no op %q", v.Op)
			}
			v.compare(t, got, err)
		})
	}
}

func (v vector) compare(t *testing.T, got map[string][]byte, err error) {
	if want, ok := v.Expect.(float64); ok {
		if code, _ := protocol.CodeOf(err); float64(code) != want {
			t.Fatalf("got %v, want code %v", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range v.Out {
		if !bytes.Equal(got[name], want) {
			t.Errorf("%s is %x, want %x", name, got[name], []byte(want))
		}
	}
}

// stretch runs all steps from the password to the client's request.
func (v vector) stretch() (map[string][]byte, error) {
	a, err := Stretch(v.In.Password, Salt(v.In.Salt), Params{v.In.MemoryKiB, v.In.Iterations, v.In.Parallelism})
	if err != nil {
		return nil, err
	}
	b := DeviceSecret(v.In.DS).Bind(protocol.ClientID(v.In.ClientID), a)
	verifier := b.Verifier()
	proof := verifier.Proof(message.Statement(v.In.Stmt).Hash())
	eph, err := ecdh.P256().NewPrivateKey(v.In.EphSK)
	if err != nil {
		return nil, err
	}
	enrol, err := ecdh.P256().NewPrivateKey(v.In.EnrolSK)
	if err != nil {
		return nil, err
	}
	names := v.names(compressed(eph), compressed(enrol))
	out := map[string][]byte{
		"nfkc": Normalize(v.In.Password), "a": a[:], "b": b[:], "k_pw": verifier[:], "proof": proof[:],
		"eph33": names.Ephemeral[:], "enrol33": names.Enrol[:],
	}
	context := names.Context()
	out["context"] = context[:]
	if out["z"], err = eph.ECDH(enrol.PublicKey()); err != nil {
		return nil, err
	}
	if out["kek"], err = keyEncryptionKey(out["z"], context); err != nil {
		return nil, err
	}
	out["wrapped"], err = Wrap(verifier, eph, names)
	return out, err
}

func (v vector) unwrap() (map[string][]byte, error) {
	enrol, err := ecdh.P256().NewPrivateKey(v.In.EnrolSK)
	if err != nil {
		return nil, err
	}
	names := v.names(protocol.PublicKey(v.In.Eph33), compressed(enrol))
	verifier, err := Unwrap(v.In.Wrapped, enrol, names)
	return map[string][]byte{"k_pw": verifier[:]}, err
}

func (v vector) names(eph, enrol protocol.PublicKey) derive.PasswordImport {
	return derive.PasswordImport{
		Root: protocol.PublicKey(v.In.RootKey).RootID(), Ephemeral: eph, Enrol: enrol,
		SigningKey: protocol.PublicKey(v.In.SigningKey),
	}
}

func compressed(key *ecdh.PrivateKey) protocol.PublicKey {
	p, err := protocol.CompressPoint(key.PublicKey().Bytes())
	if err != nil {
		panic(err)
	}
	return p
}

func TestBelowFloor(t *testing.T) {
	for _, p := range []Params{{19*1024 - 1, 2, 1}, {19 * 1024, 1, 1}, {19 * 1024, 2, 0}} {
		if _, err := Stretch("correct horse", Salt{}, p); !errors.Is(err, protocol.CodeFormat) {
			t.Errorf("%+v: got %v, want a format error", p, err)
		}
	}
	if err := Default.Check(); err != nil {
		t.Errorf("default parameters: %v", err)
	}
}

func TestNotUTF8(t *testing.T) {
	if _, err := Stretch("\xff", Salt{}, Default); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("got %v, want a format error", err)
	}
}

func TestWrapForeignKey(t *testing.T) {
	one, _ := ecdh.P256().NewPrivateKey(bytes.Repeat([]byte{1}, 32))
	two, _ := ecdh.P256().NewPrivateKey(bytes.Repeat([]byte{2}, 32))
	names := derive.PasswordImport{Ephemeral: compressed(one), Enrol: compressed(two)}
	if _, err := Wrap(Verifier{}, two, names); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("Wrap with a key of another name: got %v, want a format error", err)
	}
	if _, err := Unwrap(make([]byte, 40), one, names); !errors.Is(err, protocol.CodeFormat) {
		t.Errorf("Unwrap with a key of another name: got %v, want a format error", err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	secrets := []any{Stretched{1}, Bound{1}, Verifier{1}, DeviceSecret{1}}
	for _, s := range secrets {
		for _, verb := range []string{"%v", "%s", "%+v", "%#v"} {
			if got := fmt.Sprintf(verb, s); got != secret.Redacted {
				t.Errorf("%T with %s prints %q", s, verb, got)
			}
		}
	}
}

func BenchmarkStretchDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Stretch("correct horse battery staple", Salt{1}, Default); err != nil {
			b.Fatal(err)
		}
	}
}
