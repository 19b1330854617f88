package policy

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/decide.golden anew")

// evidenceFrom spreads bits over the fields of Evidence.
func evidenceFrom(choice Choice, bits uint8) Evidence {
	return Evidence{
		Choice: choice, Signature: bits&1 != 0, Password: bits&2 != 0,
		UVKey: bits&4 != 0, SecondApprover: bits&8 != 0,
	}
}

func truthTable() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "# level  choice  evidence -> outcome  refused  missing")
	for level := range LevelSecondApprover + 1 {
		for _, choice := range []Choice{Unanswered, Refuse, Approve} {
			for bits := range uint8(16) {
				e := evidenceFrom(choice, bits)
				d := Decide(Requirement{Factors: Required(level)}, e)
				fmt.Fprintf(&b, "%s  %s  %s -> %s  %t  %s\n",
					level, choice, e.Factors(), d.Outcome(), d.Refused(), d.Missing())
			}
		}
	}
	quorumTable(&b)
	return b.Bytes()
}

// quorumTable is of changes: every choice, quorum and set of up to three signers, of
// whom each may have signed twice.
func quorumTable(b *bytes.Buffer) {
	fmt.Fprintln(b, "# administrators  choice  signers -> outcome  missing administrators")
	names := []string{Local, "ann", "bob"}
	for administrators := range 5 {
		for _, choice := range []Choice{Unanswered, Refuse, Approve} {
			for times := range 27 {
				e := Evidence{Choice: choice}
				for i, rest := 0, times; i < len(names); i, rest = i+1, rest/3 {
					e.Signers = append(e.Signers, slices.Repeat(names[i:i+1], rest%3)...)
				}
				d := Decide(Requirement{Administrators: administrators}, e)
				fmt.Fprintf(b, "%d  %s  %q -> %s  %d\n", administrators, choice, e.Signers, d.Outcome(), d.MissingAdministrators())
			}
		}
	}
}

func TestDecideGolden(t *testing.T) {
	const path = "testdata/decide.golden"
	got := truthTable()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	if len(gotLines) != len(wantLines) {
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
	for i := range gotLines {
		if !bytes.Equal(gotLines[i], wantLines[i]) {
			t.Errorf("line %d:\ngot  %s\nwant %s", i+1, gotLines[i], wantLines[i])
		}
	}
}

// TestDecideCounts says in numbers what the golden file says in lines, so that
// -update cannot hide a change of the law.
func TestDecideCounts(t *testing.T) {
	for level, want := range []struct{ approved, pending int }{{0, 0}, {8, 0}, {4, 0}, {2, 0}, {1, 1}} {
		approved, pending := 0, 0
		for bits := range uint8(16) {
			for _, choice := range []Choice{Unanswered, Refuse, Approve, 3, 255} {
				d := Decide(Requirement{Factors: Required(Level(level))}, evidenceFrom(choice, bits))
				if d.Outcome() != Denied && choice != Approve {
					t.Errorf("level %d: %s, and %s", level, choice, d.Outcome())
				}
				if d.Approved() {
					approved++
				}
				if d.Outcome() == Pending {
					pending++
				}
			}
		}
		if approved != want.approved || pending != want.pending {
			t.Errorf("level %d: %d approved, %d pending; want %+v", level, approved, pending, want)
		}
	}
}

func TestDecideSpecialCases(t *testing.T) {
	all := evidenceFrom(Approve, 15)
	for _, tc := range []struct {
		name     string
		required Factors
		e        Evidence
		outcome  Outcome
		missing  Factors
	}{
		{"zero grant", Grant{}.Factors, all, Denied, FactorSignature},
		{"password alone is no requirement", FactorPassword, all, Denied, FactorSignature},
		{"strict alone is no requirement", FactorStrict, all, Denied, FactorSignature},
		{"strict asks nothing of the user", FactorSignature | FactorStrict, evidenceFrom(Approve, 1), Approved, 0},
		{"an unknown factor cannot be proved", FactorSignature | 64, all, Denied, 64},
		{"policy may ask for more", FactorSignature | FactorUVKey, evidenceFrom(Approve, 3), Denied, FactorUVKey},
		{"no evidence", FactorSignature, Evidence{}, Denied, FactorSignature},
		{"unsigned refusal", 15, evidenceFrom(Refuse, 0), Denied, FactorSignature},
		{"unknown choice", FactorSignature, evidenceFrom(Choice(3), 15), Denied, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(Requirement{Factors: tc.required}, tc.e)
			if d.Outcome() != tc.outcome || d.Missing() != tc.missing || d.Refused() {
				t.Errorf("%s, missing %s, refused %t; want %s, missing %s", d.Outcome(), d.Missing(), d.Refused(), tc.outcome, tc.missing)
			}
			if d.Verified() != tc.e.Factors() {
				t.Errorf("verified %s, want %s", d.Verified(), tc.e.Factors())
			}
		})
	}
	var zero Decision
	if zero.Approved() || zero.Outcome() != Denied {
		t.Error("the zero decision does not deny")
	}
}

func TestNamesReadBack(t *testing.T) {
	for _, c := range []Choice{Unanswered, Refuse, Approve} {
		if got, err := ParseChoice(c.String()); err != nil || got != c {
			t.Errorf("%s: %s, %v", c, got, err)
		}
	}
	for _, o := range []Outcome{Denied, Pending, Approved} {
		if got, err := ParseOutcome(o.String()); err != nil || got != o {
			t.Errorf("%s: %s, %v", o, got, err)
		}
	}
	if _, err := ParseChoice("yes"); err == nil {
		t.Error("choice yes accepted")
	}
	if o, err := ParseOutcome("granted"); err == nil || o != Denied {
		t.Error("outcome granted accepted")
	}
	if got := Outcome(9).String(); got != "unknown (9)" {
		t.Errorf("outcome 9: %s", got)
	}
}

// FuzzMoreEvidence: evidence that is added never turns an outcome into a lesser
// one, and a requirement that is added never into a greater one.
func FuzzMoreEvidence(f *testing.F) {
	f.Add(uint8(1), uint8(2), uint8(1), uint8(2))
	f.Add(uint8(15), uint8(0), uint8(7), uint8(8))
	f.Add(uint8(3), uint8(16), uint8(0), uint8(3))
	f.Fuzz(func(t *testing.T, required, harder, bits, more uint8) {
		less := evidenceFrom(Approve, bits)
		d := Decide(Requirement{Factors: Factors(required)}, less)
		if got := Decide(Requirement{Factors: Factors(required)}, evidenceFrom(Approve, bits|more)); got.Outcome() < d.Outcome() {
			t.Fatalf("required %s: %s with %s, %s with %s more", Factors(required), d.Outcome(), less.Factors(), got.Outcome(), Factors(more))
		}
		for _, c := range []Choice{Unanswered, Refuse} {
			if got := Decide(Requirement{Factors: Factors(required)}, evidenceFrom(c, bits|more)); got.Outcome() != Denied {
				t.Fatalf("%s: %s", c, got.Outcome())
			}
		}
		if required&1 == 0 {
			return // no requirement at all: denied, and more of it may be one
		}
		if got := Decide(Requirement{Factors: Factors(required | harder)}, less); got.Outcome() > d.Outcome() {
			t.Fatalf("%s with %s required, %s with %s", d.Outcome(), Factors(required), got.Outcome(), Factors(required|harder))
		}
	})
}
