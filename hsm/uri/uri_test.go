package uri

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// The examples of RFC 7512 §3, without those that carry a PIN.
var examples = []string{
	"pkcs11:",
	"pkcs11:object=my-pubkey;type=public",
	"pkcs11:object=my-key;type=private?pin-source=file:/etc/token",
	"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;object=my-certificate;type=cert;" +
		"id=%69%95%3E%5C%F4%BD%EC%91?pin-source=file:/etc/token_pin",
	"pkcs11:object=my-sign-key;type=private?module-name=mypkcs11",
	"pkcs11:object=my-sign-key;type=private?module-path=/mnt/libmypkcs11.so.1",
	"pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-source=%7C/usr/lib/pinomatic",
	"pkcs11:slot-description=Sun%20Metaslot",
	"pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23",
	"pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%42%61%7A?x-vend=1&x-vend=2",
}

func TestExamples(t *testing.T) {
	for _, s := range examples {
		u, err := Parse(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		again, err := Parse(u.String())
		if err != nil || again.String() != u.String() {
			t.Errorf("%s: canonical form %s parses to %s, %v", s, u, again, err)
		}
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"pkcs11:?":                                        "pkcs11:",
		"PKCS11:serial=1;token=a":                         "pkcs11:token=a;serial=1",
		"pkcs11:token=%63ountersign":                      "pkcs11:token=countersign",
		"pkcs11:id=ab%0c":                                 "pkcs11:id=%61%62%0C",
		"pkcs11:x-b=1;x-a=2;token=a%3bb":                  "pkcs11:token=a%3Bb;x-a=2;x-b=1",
		"pkcs11:token=a/b":                                "",
		"pkcs11:token=a&b":                                "pkcs11:token=a&b",
		"pkcs11:?module-path=/a%26b&pin-source=|/bin/p":   "pkcs11:?pin-source=|/bin/p&module-path=/a%26b",
		"pkcs11:token=%C3%A9":                             "pkcs11:token=%C3%A9",
		"pkcs11:token=é":                                  "",
		"pkcs11:token=":                                   "pkcs11:token=",
		"pkcs11:slot-id=3;manufacturer=m":                 "pkcs11:manufacturer=m;slot-id=3",
		"pkcs11:token=a?module-name=softhsm2&x-a=1&x-a=2": "pkcs11:token=a?module-name=softhsm2&x-a=1&x-a=2",
	} {
		u, err := Parse(in)
		if want == "" {
			if !errors.Is(err, ErrURI) {
				t.Errorf("%s: %v, want ErrURI", in, err)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, u, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for in, want := range map[string]string{
		"http:token=a":                              "does not start with pkcs11:",
		"pkcs11:tokne=a":                            "did you mean token?",
		"pkcs11:module-path=/a":                     "after the question mark",
		"pkcs11:?token=a":                           "before the question mark",
		"pkcs11:token=a;token=b":                    "token is repeated",
		"pkcs11:x-a=1;x-a=2":                        "x-a is repeated",
		"pkcs11:token":                              "not NAME=VALUE",
		"pkcs11:token=a;":                           "not NAME=VALUE",
		"pkcs11:token=a%2":                          "without two digits",
		"pkcs11:token=a%zz":                         "without two hexadecimal digits",
		"pkcs11:token=a b":                          "must be written %20",
		"pkcs11:token=%ff":                          "not UTF-8",
		"pkcs11:type=key":                           "want one of",
		"pkcs11:slot-id=x":                          "want digits",
		"pkcs11:library-version=1.":                 "MAJOR",
		"pkcs11:?pin-value=canary-1234":             "never contains a PIN",
		"pkcs11:?pin-vlue=1":                        "unknown attribute",
		"pkcs11:token=" + strings.Repeat("a", 5000): "at most 4096",
		"pkcs11:id=" + strings.Repeat("a", 4000):    "at most 4096",
	} {
		_, err := Parse(in)
		if !errors.Is(err, ErrURI) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want ErrURI with %q", in, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the PIN is in the error: %v", err)
		}
	}
}

func TestUnfit(t *testing.T) {
	slots := []Facts{
		{"token": "countersign", "serial": "01", "slot-id": "7"},
		{"token": "other token", "serial": "02", "slot-id": "8"},
	}
	for in, want := range map[string][]string{
		"pkcs11:":                            nil,
		"pkcs11:token=countersign":           nil,
		"pkcs11:token=countersign;object=k":  nil,
		"pkcs11:token=countersing":           {"no token has token=countersing (did you mean token=countersign?)"},
		"pkcs11:token=other%20tokn;serial=9": {"no token has token=other%20tokn (did you mean token=other%20token?)", "no token has serial=9 (did you mean serial=01?)"},
		"pkcs11:token=countersign;serial=02": {"each attribute fits a token, but no token has them all"},
		"pkcs11:token=hsm;serial=01":         {"no token has token=hsm"},
	} {
		u, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.Unfit(slots); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	if got := (URI{}).Unfit(nil); len(got) != 1 {
		t.Errorf("no slots: %q", got)
	}
}

func TestNew(t *testing.T) {
	u, err := New(Attribute{ModulePath, "/usr/lib/a b.so"}, Attribute{Serial, ""}, Attribute{Token, "pay;roll"})
	if want := "pkcs11:token=pay%3Broll?module-path=/usr/lib/a%20b.so"; err != nil || u.String() != want {
		t.Errorf("%s, %v; want %s", u, err, want)
	}
	if v, ok := u.Get(Token); v != "pay;roll" || !ok {
		t.Errorf("token is %q, %v", v, ok)
	}
	if _, err := New(Attribute{"tokne", "a"}); !errors.Is(err, ErrURI) {
		t.Errorf("%v, want ErrURI", err)
	}
}

// What parses has a canonical form, which parses to the same.
func FuzzParse(f *testing.F) {
	for _, s := range examples {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(u.String())
		if err != nil {
			t.Fatalf("%q: its canonical form %q: %v", s, u, err)
		}
		if !slices.Equal(again.path, u.path) || !slices.Equal(again.query, u.query) || again.String() != u.String() {
			t.Fatalf("%q: %q, then %q", s, u, again)
		}
	})
}
