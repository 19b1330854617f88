package policy

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"countersign/protocol"
)

var update = flag.Bool("update", false, "write testdata/decide.golden anew")

// evidenceFrom sets the fields of Evidence from bits.
func evidenceFrom(verdict protocol.Verdict, bits uint8) Evidence {
	return Evidence{
		Verdict: verdict, Signature: bits&1 != 0, Password: bits&2 != 0,
		UVKey: bits&4 != 0, SecondApprover: bits&8 != 0,
	}
}

func factorsOf(level protocol.Level) protocol.Factors {
	f, _ := level.Factors()
	return f
}

func named(f protocol.Factors) string { return cmp.Or(f.String(), "none") }

// rank orders rulings from least to most allowed.
func rank(r Ruling) int {
	switch {
	case r.Approved():
		return 2
	case r.Pending():
		return 1
	}
	return 0
}

func outcome(r Ruling) string { return []string{"denied", "pending", "approved"}[rank(r)] }

func truthTable() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, "# level  choice  evidence -> outcome  refused  missing")
	for level := range protocol.Level(5) {
		for _, choice := range []protocol.Verdict{protocol.Refuse, protocol.Approve} {
			for bits := range uint8(16) {
				e := evidenceFrom(choice, bits)
				d := Decide(Requirement{Factors: factorsOf(level)}, e)
				fmt.Fprintf(&b, "%s  %s  %s -> %s  %t  %s\n",
					level, choice, named(e.Factors()), outcome(d), d.Refused(), named(d.Missing()))
			}
		}
	}
	quorumTable(&b)
	return b.Bytes()
}

// quorumTable covers changes: every verdict, quorum and set of up to three signers, each of whom may
// have signed twice.
func quorumTable(b *bytes.Buffer) {
	fmt.Fprintln(b, "# administrators  choice  signers -> outcome  missing administrators")
	names := []string{Local, "ann", "bob"}
	for administrators := range 5 {
		for _, choice := range []protocol.Verdict{protocol.Refuse, protocol.Approve} {
			for times := range 27 {
				e := Evidence{Verdict: choice}
				for i, rest := 0, times; i < len(names); i, rest = i+1, rest/3 {
					e.Signers = append(e.Signers, slices.Repeat(names[i:i+1], rest%3)...)
				}
				d := Decide(Requirement{Administrators: administrators}, e)
				fmt.Fprintf(b, "%d  %s  %q -> %s  %d\n", administrators, choice, e.Signers, outcome(d), d.MissingAdministrators())
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

// TestDecideCounts states the totals of the golden file, so that -update cannot hide a change of the
// rules.
func TestDecideCounts(t *testing.T) {
	for level, want := range []struct{ approved, pending int }{{0, 0}, {8, 0}, {4, 0}, {2, 0}, {1, 1}} {
		approved, pending := 0, 0
		for bits := range uint8(16) {
			for _, choice := range []protocol.Verdict{protocol.Refuse, protocol.Approve, 2, 3, 255} {
				d := Decide(Requirement{Factors: factorsOf(protocol.Level(level))}, evidenceFrom(choice, bits))
				if (d.Approved() || d.Pending()) && choice != protocol.Approve {
					t.Errorf("level %d: %s, and %s", level, choice, outcome(d))
				}
				if d.Approved() {
					approved++
				}
				if d.Pending() {
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
	all := evidenceFrom(protocol.Approve, 15)
	for _, tc := range []struct {
		name     string
		required protocol.Factors
		e        Evidence
		outcome  string
		missing  protocol.Factors
	}{
		{"zero grant", Grant{}.Factors, all, "denied", protocol.FactorSignature},
		{"password alone is no requirement", protocol.FactorPassword, all, "denied", protocol.FactorSignature},
		{"strict alone is no requirement", protocol.FactorStrict, all, "denied", protocol.FactorSignature},
		{"strict asks nothing of the user", protocol.FactorSignature | protocol.FactorStrict, evidenceFrom(protocol.Approve, 1), "approved", 0},
		{"an unknown factor cannot be proved", protocol.FactorSignature | 64, all, "denied", 64},
		{"policy may ask for more", protocol.FactorSignature | protocol.FactorUV, evidenceFrom(protocol.Approve, 3), "denied", protocol.FactorUV},
		{"no evidence", protocol.FactorSignature, Evidence{}, "denied", protocol.FactorSignature},
		{"unsigned refusal", 15, evidenceFrom(protocol.Refuse, 0), "denied", protocol.FactorSignature},
		{"unknown verdict", protocol.FactorSignature, evidenceFrom(3, 15), "denied", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(Requirement{Factors: tc.required}, tc.e)
			if outcome(d) != tc.outcome || d.Missing() != tc.missing || d.Refused() {
				t.Errorf("%s, missing %s, refused %t; want %s, missing %s", outcome(d), d.Missing(), d.Refused(), tc.outcome, tc.missing)
			}
			if d.Verified() != tc.e.Factors() {
				t.Errorf("verified %s, want %s", d.Verified(), tc.e.Factors())
			}
		})
	}
	var zero Ruling
	if zero.Approved() || zero.Pending() {
		t.Error("the zero ruling does not deny")
	}
}

// FuzzMoreEvidence: additional evidence never worsens a ruling, and an additional requirement never
// improves it.
func FuzzMoreEvidence(f *testing.F) {
	f.Add(uint8(1), uint8(2), uint8(1), uint8(2))
	f.Add(uint8(15), uint8(0), uint8(7), uint8(8))
	f.Add(uint8(3), uint8(16), uint8(0), uint8(3))
	f.Fuzz(func(t *testing.T, required, harder, bits, more uint8) {
		less := evidenceFrom(protocol.Approve, bits)
		d := Decide(Requirement{Factors: protocol.Factors(required)}, less)
		if got := Decide(Requirement{Factors: protocol.Factors(required)}, evidenceFrom(protocol.Approve, bits|more)); rank(got) < rank(d) {
			t.Fatalf("required %s: %s with %s, %s with %s more", protocol.Factors(required), outcome(d), less.Factors(), outcome(got), protocol.Factors(more))
		}
		for _, c := range []protocol.Verdict{protocol.Refuse, 2} {
			if got := Decide(Requirement{Factors: protocol.Factors(required)}, evidenceFrom(c, bits|more)); rank(got) != 0 {
				t.Fatalf("%s: %s", c, outcome(got))
			}
		}
		if required&1 == 0 {
			return // nothing is required: Decide denies, and a further requirement may be a valid one
		}
		if got := Decide(Requirement{Factors: protocol.Factors(required | harder)}, less); rank(got) > rank(d) {
			t.Fatalf("%s with %s required, %s with %s", outcome(d), protocol.Factors(required), outcome(got), protocol.Factors(required|harder))
		}
	})
}
