package custody

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/age"

	"countersign/protocol"
)

func made(t testing.TB, s Scheme) (protocol.PublicKey, []Share) {
	t.Helper()
	public, shares, err := Make(s)
	if err != nil {
		t.Fatal(err)
	}
	return PointOf(public), shares
}

// Every M of N shares recover the key, and no fewer do.
func TestCombine(t *testing.T) {
	for _, s := range []Scheme{{2, 2}, {2, 3}, {3, 5}, {5, 5}} {
		key, shares := made(t, s)
		for set := range 1 << s.Shares {
			var some []Share
			for i, one := range shares {
				if set>>i&1 == 1 {
					some = append(some, one, one) // the same one twice counts once
				}
			}
			private, err := Combine(some)
			if enough := len(some)/2 >= s.Threshold; !enough {
				if !errors.Is(err, ErrFew) {
					t.Fatalf("%v, set %b: %v, want ErrFew", s, set, err)
				}
			} else if err != nil || PointOf(private.PublicKey()) != key {
				t.Fatalf("%v, set %b: %v", s, set, err)
			}
		}
	}
}

func TestCombineMixed(t *testing.T) {
	_, shares := made(t, Scheme{2, 3})
	_, others := made(t, Scheme{2, 3})
	if _, err := Combine([]Share{shares[0], others[1]}); !errors.Is(err, ErrMixed) {
		t.Errorf("%v, want ErrMixed", err)
	}
}

func TestSchemes(t *testing.T) {
	for _, s := range []Scheme{{0, 0}, {1, 1}, {1, 3}, {3, 2}, {2, MaxShares + 1}, {-1, 3}} {
		if _, _, err := Make(s); !errors.Is(err, ErrThreshold) {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// The text of a share parses, and no other digit does.
func TestShareText(t *testing.T) {
	_, shares := made(t, Scheme{3, 4})
	text := shares[1].text()
	again, err := ParseShare(text)
	if err != nil || !bytes.Equal(again.text(), text) {
		t.Fatalf("%v: %s", err, text)
	}
	for i := range text {
		for _, flip := range []byte{1, 2, 0x20} {
			bad := bytes.Clone(text)
			bad[i] ^= flip
			if s, err := ParseShare(bad); !errors.Is(err, ErrShare) && s.Of == 4 { // how many there are is only told
				t.Fatalf("byte %d, %q: %v, %v", i, bad[i], s, err)
			}
		}
	}
	for _, bad := range []string{"", "\n\n\n\n\n\n", string(text) + "\n", string(text[:len(text)-1]), strings.ToUpper(string(text))} {
		if _, err := ParseShare([]byte(bad)); !errors.Is(err, ErrShare) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// No format verb prints the value of a share.
func TestShareIsSecret(t *testing.T) {
	_, shares := made(t, Scheme{2, 2})
	value := fmt.Sprintf("%x", shares[0].value[:])
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if out := fmt.Sprintf(verb, struct{ Share }{shares[0]}) + fmt.Sprintf(verb, shares[0]); strings.Contains(out, value[:16]) || !strings.Contains(out, "share 1 of 2") {
			t.Errorf("%s: %s", verb, out)
		}
	}
}

func TestFiles(t *testing.T) {
	_, shares := made(t, Scheme{2, 3})
	own, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	to, err := Recipient(own.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	file, err := shares[0].Seal(to)
	if err != nil || !bytes.HasPrefix(file, []byte("-----BEGIN AGE ENCRYPTED FILE-----")) || !Locked(file) {
		t.Fatalf("%v: %s", err, file)
	}
	ids, err := Identities([]byte("# a comment\n" + own.String() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(file, ids)
	if err != nil || got.String() != shares[0].String() || got.value != shares[0].value {
		t.Fatalf("%v, %v", got, err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][]age.Identity{nil, {stranger}} {
		if _, err := Open(file, ids); !errors.Is(err, ErrSealed) {
			t.Errorf("%v, want ErrSealed", err)
		}
	}
	for i := 40; i < len(file)-40; i += 7 {
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if _, err := Open(bad, ids); !errors.Is(err, ErrShare) && !errors.Is(err, ErrSealed) {
			t.Fatalf("byte %d of the file: %v", i, err)
		}
	}
	if got, err := Open(shares[2].text(), nil); err != nil || got.Number != 3 {
		t.Errorf("a file that its custodian opened: %v, %v", got, err)
	}
}

func TestPassphrase(t *testing.T) {
	_, shares := made(t, Scheme{2, 2})
	if _, err := Passphrase([]byte("too short")); err == nil {
		t.Error("a short passphrase was taken")
	}
	secret := []byte("four words that nobody says")
	to, err := Passphrase(secret)
	if err != nil {
		t.Fatal(err)
	}
	file, err := shares[1].Seal(to)
	if err != nil {
		t.Fatal(err)
	}
	for phrase, want := range map[string]error{string(secret): nil, "four words that anybody says": ErrPassphrase} {
		id, err := Unlock([]byte(phrase))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(file, []age.Identity{id}); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", phrase, err, want)
		}
	}
	if _, err := Open(file, nil); !errors.Is(err, ErrPassphrase) {
		t.Errorf("without any: %v", err)
	}
}

func TestPublicPEM(t *testing.T) {
	key, shares := made(t, Scheme{2, 2})
	public, err := key.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	text, err := PublicPEM(public)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParsePublicPEM(text); err != nil || PointOf(got) != key || shares[0].Key() != key {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, text[1:], append(bytes.Clone(text), 'x'), bytes.Replace(text, []byte("PUBLIC"), []byte("PRIVATE"), 2)} {
		if _, err := ParsePublicPEM(bad); !errors.Is(err, ErrPublic) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParseShare: a parsed share has the same text.
func FuzzParseShare(f *testing.F) {
	_, shares := made(f, Scheme{2, 3})
	f.Add(shares[0].text())
	f.Add([]byte(shareTitle + "\nkey \nshare 1 of 2\nthreshold 2\ncommitment \nvalue \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := ParseShare(text); err == nil && !bytes.Equal(s.text(), text) {
			t.Fatalf("%q is written as %q", text, s.text())
		}
	})
}
