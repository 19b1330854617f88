package change

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"countersign/policy"
	"countersign/protocol"
)

// hexBytes is a byte string of the vector.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type vector struct {
	PrivateKey   hexBytes            `json:"private_key"`
	PublicKey    hexBytes            `json:"public_key"`
	Signer       hexBytes            `json:"signer"`
	Document     hexBytes            `json:"document"`
	Hash         hexBytes            `json:"hash"`
	ID           hexBytes            `json:"id"`
	SigStructure hexBytes            `json:"sig_structure"`
	Digest       hexBytes            `json:"digest"`
	Signature    hexBytes            `json:"signature"`
	WrongAAD     hexBytes            `json:"wrong_aad"`
	Attached     hexBytes            `json:"attached"`
	Rich         hexBytes            `json:"rich"`
	Good         hexBytes            `json:"good"`
	Refused      map[string]hexBytes `json:"refused"`
	Kinds        map[string]hexBytes `json:"kinds"`
}

func readVector(t testing.TB) (v vector) {
	t.Helper()
	raw, err := os.ReadFile("testdata/change.json")
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// key signs as RFC 6979 has it, so that the vector's signature comes out.
type key struct{ *ecdsa.PrivateKey }

func (k key) SignDigest(_ context.Context, digest []byte) ([]byte, error) {
	der, err := k.Sign(nil, digest, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, err
	}
	return append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...), nil
}

func TestVector(t *testing.T) {
	v := readVector(t)
	r, err := Parse(v.Document)
	if err != nil {
		t.Fatal(err)
	}
	want := Request{
		Version: 1, Kind: policy.KeyDestroy, Parameters: Parameters{"name": "decision", "version": uint64(1)},
		Domain: "dev.countersign.example", By: "local", Created: 1790000000, Expires: 1790086400, Nonce: r.Nonce, Base: r.Base,
	}
	if !reflect.DeepEqual(r, want) || r.Nonce[15] != 15 {
		t.Errorf("document is %+v", r)
	}
	hash := HashOf(v.Document)
	if !bytes.Equal(hash[:], v.Hash) || hash.ID().String() != hex.EncodeToString(v.ID) {
		t.Errorf("hash is %s", hash)
	}
	if got := protocol.SigStructure(AAD, hash[:]); !bytes.Equal(got, v.SigStructure) {
		t.Errorf("Sig_structure is %x", got)
	}
	if sum := digest(hash); !bytes.Equal(sum[:], v.Digest) {
		t.Errorf("digest is %x", sum)
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), v.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := protocol.CompressKey(&private.PublicKey)
	if id := SignerOf(public); err != nil || !bytes.Equal(public[:], v.PublicKey) || !bytes.Equal(id[:], v.Signer) {
		t.Fatalf("public key is %s, %v", public, err)
	}
	s, err := Sign(t.Context(), key{private}, public, hash)
	if err != nil || !bytes.Equal(s.Marshal(), v.Signature) {
		t.Errorf("signature is %x, %v", s.Marshal(), err)
	}
}

func TestVerify(t *testing.T) {
	v := readVector(t)
	s, err := ParseSignature(v.Signature)
	if err != nil {
		t.Fatal(err)
	}
	public, err := protocol.ParsePublicKey(v.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(HashOf(v.Document), public); err != nil {
		t.Error(err)
	}
	altered := bytes.Clone(v.Document)
	altered[len(altered)-1] ^= 1
	if err := s.Verify(HashOf(altered), public); !errors.Is(err, ErrSignature) {
		t.Errorf("another document: %v", err)
	}
	wrong, err := ParseSignature(v.WrongAAD)
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong.Verify(HashOf(v.Document), public); !errors.Is(err, ErrSignature) {
		t.Errorf("another external_aad: %v", err)
	}
	if _, err := ParseSignature(v.Attached); !errors.Is(err, ErrSignature) {
		t.Errorf("attached payload: %v", err)
	}
	for bit := range len(v.Signature) * 8 {
		flipped := bytes.Clone(v.Signature)
		flipped[bit/8] ^= 1 << (bit % 8)
		got, err := ParseSignature(flipped)
		if err == nil {
			err = got.Verify(HashOf(v.Document), public)
		}
		if !errors.Is(err, ErrSignature) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	v := readVector(t)
	for _, good := range [][]byte{v.Good, v.Rich} {
		if r, err := Parse(good); err != nil || !bytes.Equal(r.Marshal(), good) {
			t.Fatalf("%x: %v", good, err)
		}
	}
	for name, doc := range v.Refused {
		if _, err := Parse(doc); !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(make([]byte, MaxDocument+1)); !errors.Is(err, ErrDocument) {
		t.Errorf("too long: %v", err)
	}
}

// rowOfKind matches a row of CHANGE.md's table of parameters.
var rowOfKind = regexp.MustCompile("(?m)^\\| `([a-z]+\\.[a-z]+)` \\| (.*) \\|$")

// TestKinds: CHANGE.md has every kind of change in its list, with its parameters and its base, and
// there is a vector of each.
func TestKinds(t *testing.T) {
	v := readVector(t)
	raw, err := os.ReadFile("CHANGE.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	before, base, _ := strings.Cut(text, "## The base")
	rows := map[string]string{}
	for _, m := range rowOfKind.FindAllStringSubmatch(before, -1) {
		rows[m[1]] = m[2]
	}
	base, _, _ = strings.Cut(base, "\n## ")
	kinds := policy.Kinds()
	if len(rows) != len(kinds) || len(v.Kinds) != len(kinds) {
		t.Errorf("%d kinds, %d rows of the table, %d vectors", len(kinds), len(rows), len(v.Kinds))
	}
	for _, k := range kinds {
		r, err := Parse(v.Kinds[k.String()])
		if err != nil || r.Kind != k || !bytes.Equal(r.Marshal(), v.Kinds[k.String()]) {
			t.Errorf("vector of %s: %s, %v", k, r.Kind, err)
		}
		if strings.Count(text, "`"+k.String()+"`") < 3 || !strings.Contains(base, "`"+k.String()+"`") {
			t.Errorf("CHANGE.md does not list %s, or not its parameters, or not its base", k)
		}
		for name := range r.Parameters {
			if !strings.Contains(rows[k.String()], "`"+name+"`") {
				t.Errorf("CHANGE.md does not describe the parameter %s of %s", name, k)
			}
		}
	}
}

func TestParseID(t *testing.T) {
	hash := HashOf([]byte("x"))
	for _, s := range []string{hash.String(), hash.ID().String()} {
		if id, err := ParseID(s); err != nil || id != hash.ID() {
			t.Errorf("%s: %s, %v", s, id, err)
		}
	}
	for _, s := range []string{"", "12", hash.ID().String() + "00", "zz" + hash.ID().String()[2:]} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q was read as an id", s)
		}
	}
}

// FuzzParse: what parses marshals back to the same bytes.
func FuzzParse(f *testing.F) {
	v := readVector(f)
	f.Add([]byte(v.Document))
	f.Add([]byte(v.Rich))
	for _, doc := range v.Refused {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if r, err := Parse(doc); err == nil && !bytes.Equal(r.Marshal(), doc) {
			t.Fatalf("%x marshals to %x", doc, r.Marshal())
		}
	})
}
