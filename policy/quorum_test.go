package policy

import (
	"slices"
	"strings"
	"testing"

	"countersign/protocol"
)

const quorumBase = "[[service]]\nid = 16\nname = \"x\"\nlevel = 1\n"

func TestQuorum(t *testing.T) {
	doc := quorumBase + "[quorum]\n\"key.destroy\" = 2\nadmin.add = 3\nlocal = false\n"
	p := mustParse(t, doc)
	for kind, want := range map[Kind]int{KeyDestroy: 2, AdminAdd: 3, AdminRevoke: 1, PolicyApply: 1} {
		if got := p.Quorum(kind); got.Administrators != want || got.Factors != 0 {
			t.Errorf("%s: %+v, want %d administrators", kind, got, want)
		}
	}
	if p.CountsLocal() {
		t.Error("local counts")
	}
	if p := mustParse(t, string(Default())); !p.CountsLocal() || p.Quorum(KeyDestroy).Administrators != 1 {
		t.Error("the default policy asks for more than the admin socket")
	}
	if got := (&Policy{}).Quorum(PolicyApply); got.Administrators != 1 {
		t.Errorf("the zero policy asks for %d", got.Administrators)
	}
}

func TestQuorumRefused(t *testing.T) {
	for text, want := range map[string]string{
		"\"key.destroy\" = 0":                       "line 6: quorum: key.destroy: want 1 to 16 administrators, found 0",
		"key.destroy = 17":                          "line 6: quorum: key.destroy: want 1 to 16",
		"\"key.destroy\" = \"two\"":                 "line 6: quorum: key.destroy: want 1 to 16 administrators, found \"two\"",
		"\"key.destory\" = 2":                       "line 6: quorum: kind of change \"key.destory\": want one of",
		"local = 1":                                 "line 6: quorum: local: want true or false",
		"key.destroy = 2\n\"key.destroy\" = 3":      "quorum: key.destroy appears twice",
		"x = 2":                                     "line 6: quorum: kind of change \"x\"",
		"\"key.destroy\" = 2\n[quorums]\nlocal = 1": "unknown key quorums",
	} {
		_, err := Parse([]byte(quorumBase + "[quorum]\n" + text + "\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestKindsReadBack(t *testing.T) {
	for _, k := range Kinds() {
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Errorf("%s: %s, %v", k, got, err)
		}
	}
	if _, err := ParseKind("key.create"); err == nil {
		t.Error("key.create needs no quorum and was read as a kind")
	}
}

// TestDecideQuorum states the rules of the golden file in words.
func TestDecideQuorum(t *testing.T) {
	two := Requirement{Administrators: 2}
	for _, tc := range []struct {
		name     string
		required Requirement
		e        Evidence
		outcome  string
		missing  int
	}{
		{"nobody", two, Evidence{Verdict: protocol.Approve}, "denied", 2},
		{"nobody has no name", two, Evidence{Verdict: protocol.Approve, Signers: []string{"", ""}}, "denied", 2},
		{"one", two, Evidence{Verdict: protocol.Approve, Signers: []string{"ann"}}, "pending", 1},
		{"one twice counts once", two, Evidence{Verdict: protocol.Approve, Signers: []string{"ann", "ann"}}, "pending", 1},
		{"local twice counts once", two, Evidence{Verdict: protocol.Approve, Signers: []string{Local, Local}}, "pending", 1},
		{"two", two, Evidence{Verdict: protocol.Approve, Signers: []string{"ann", "bob"}}, "approved", 0},
		{"two, withdrawn", two, Evidence{Verdict: protocol.Refuse, Signers: []string{"ann", "bob"}}, "denied", 0},
		{"no answer", two, Evidence{Signers: []string{"ann", "bob"}}, "denied", 0},
		{"nothing is required", Requirement{}, Evidence{Verdict: protocol.Approve, Signature: true, Signers: []string{"ann"}}, "denied", 0},
		{"officers and a signature", Requirement{Factors: protocol.FactorSignature, Administrators: 1}, Evidence{Verdict: protocol.Approve, Signers: []string{"ann"}}, "denied", 0},
		{"a signature and no officer", Requirement{Factors: protocol.FactorSignature, Administrators: 1}, Evidence{Verdict: protocol.Approve, Signature: true}, "pending", 1},
	} {
		if d := Decide(tc.required, tc.e); outcome(d) != tc.outcome || d.MissingAdministrators() != tc.missing {
			t.Errorf("%s: %s, %d missing; want %s, %d", tc.name, outcome(d), d.MissingAdministrators(), tc.outcome, tc.missing)
		}
	}
}

// FuzzMoreSigners: an additional signer or factor never worsens a ruling, a larger quorum never
// improves it.
func FuzzMoreSigners(f *testing.F) {
	f.Add(uint8(2), uint8(0), uint8(0), "ann", "bob")
	f.Add(uint8(1), uint8(1), uint8(1), "", "local")
	f.Fuzz(func(t *testing.T, administrators, factors, bits uint8, signers, more string) {
		required := Requirement{Factors: protocol.Factors(factors), Administrators: int(administrators % 20)}
		e := evidenceFrom(protocol.Approve, bits)
		e.Signers = strings.Split(signers, ",")
		d := Decide(required, e)
		wider := e
		wider.Signers = append(slices.Clone(e.Signers), more)
		if got := Decide(required, wider); rank(got) < rank(d) || got.MissingAdministrators() > d.MissingAdministrators() {
			t.Fatalf("%+v: %s with %q, %s with %q more", required, outcome(d), e.Signers, outcome(got), more)
		}
		if required.Administrators == 0 {
			return // possibly nothing is required
		}
		required.Administrators++
		if got := Decide(required, e); rank(got) > rank(d) {
			t.Fatalf("%s, and %s with a larger quorum", outcome(d), outcome(got))
		}
	})
}

// TestEvasions: a quorum is worth no more than the smallest quorum that can change it.
func TestEvasions(t *testing.T) {
	for quorum, want := range map[string][]string{
		"":                      nil,
		"\"key.destroy\" = 2\n": {"key.destroy takes 2 administrators, and 1 can change that by policy.apply"},
		"\"key.destroy\" = 2\n\"policy.apply\" = 2\n": {
			"key.destroy takes 2 administrators, and 1 can change that by admin.add",
			"policy.apply takes 2 administrators, and 1 can change that by admin.add",
		},
		"\"key.destroy\" = 2\n\"policy.apply\" = 2\n\"admin.add\" = 2\n": nil,
	} {
		p := mustParse(t, quorumBase+"[quorum]\n"+quorum)
		var got []string
		for _, e := range p.Evasions() {
			got = append(got, e.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", quorum, got, want)
		}
	}
}

// TestReplaceInvites: to replace a party takes at least what it takes to invite one.
func TestReplaceInvites(t *testing.T) {
	p := mustParse(t, quorumBase+"[quorum]\n\"client.invite\" = 3\n\"device.invite\" = 2\n\"device.replace\" = 4\nclient.replace = 1\n")
	for kind, want := range map[Kind]int{ClientInvite: 3, ClientReplace: 3, DeviceInvite: 2, DeviceReplace: 4, ClientResume: 1} {
		if got := p.Quorum(kind).Administrators; got != want {
			t.Errorf("%s takes %d, want %d", kind, got, want)
		}
	}
}

// TestRulingOutRetires: what rules out versions of a key takes at least what it takes to retire one.
func TestRulingOutRetires(t *testing.T) {
	p := mustParse(t, quorumBase+"[quorum]\n\"key.retire\" = 3\n\"key.rotate\" = 4\n\"key.activate\" = 2\n")
	for kind, want := range map[Kind]int{KeyRotate: 4, KeyActivate: 3, KeyRetire: 3, RootRotate: 3} {
		if got := p.QuorumRulingOut(kind).Administrators; got != want {
			t.Errorf("%s takes %d, want %d", kind, got, want)
		}
	}
}

// TestUnattended: only a copy of the database can need no vote, if the document says so.
func TestUnattended(t *testing.T) {
	if p := mustParse(t, quorumBase+"[quorum]\n\"store.backup\" = 0\n"); !p.Unattended(StoreBackup) || p.Unattended(KeyBackup) || p.Quorum(StoreBackup).Administrators != 1 {
		t.Error("store.backup = 0")
	}
	for _, text := range []string{"", "\"store.backup\" = 1\n"} {
		if mustParse(t, quorumBase+"[quorum]\n"+text).Unattended(StoreBackup) {
			t.Errorf("%q needs no vote", text)
		}
	}
	for _, k := range Kinds() {
		if _, err := Parse([]byte(quorumBase + "[quorum]\n\"" + k.String() + "\" = 0\n")); k != StoreBackup && err == nil {
			t.Errorf("%s = 0", k)
		}
	}
}

// TestAgainstSchedule: a schedule has no vote in the quorums of its steps.
func TestAgainstSchedule(t *testing.T) {
	for text, want := range map[string][]Kind{
		"": nil, "\"key.destroy\" = 2\n\"key.resume\" = 2\n\"root.rotate\" = 2\n": nil,
		"\"key.rotate\" = 2\n\"key.retire\" = 3\n": {KeyRotate, KeyRetire}, "\"key.activate\" = 2\n": {KeyActivate},
	} {
		if got := mustParse(t, quorumBase+"[quorum]\n"+text).AgainstSchedule(); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestReserved: words that mean something inside are refused. In a stored document of an earlier
// release they grant nothing.
func TestReserved(t *testing.T) {
	for text, want := range map[string]string{
		"[approval]\nrole = \"uv\"\n":                      "approval: role \"uv\" is reserved",
		"[uv]\nattestation = [\"good\", \"unverified\"]\n": "uv: attestation: \"unverified\" is reserved",
		"[quorum]\n\"key.restore\" = 2\nlocal = false\n":   "quorum: kind of change \"key.restore\" no longer exists: delete the line",
	} {
		_, err := Parse([]byte(quorumBase + text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		p, err := ParseStored([]byte(quorumBase + text))
		if err != nil || len(p.Ignored()) != 1 {
			t.Errorf("stored %q: %v", text, err)
			continue
		}
		if p.Approval().Role == reservedRole || word.MatchString(p.Approval().Role) && strings.Contains(text, "role") || p.AcceptsAttestation(Unverified) {
			t.Errorf("stored %q: role %q, unverified is accepted: %v", text, p.Approval().Role, p.AcceptsAttestation(Unverified))
		}
		if strings.Contains(text, "good") != p.AcceptsAttestation("good") || strings.Contains(text, "local") == p.CountsLocal() {
			t.Errorf("stored %q: the rest is not in force", text)
		}
	}
	if p, err := ParseStored(Default()); err != nil || p.Ignored() != nil {
		t.Errorf("the default policy: %v, %v", p.Ignored(), err)
	}
	if _, err := ParseStored([]byte(quorumBase + "[quorum]\n\"key.destory\" = 2\n")); err == nil {
		t.Error("a stored document may say anything")
	}
}

// TestQuorumResuming: those who are left resume an administrator if they are fewer than admin.add takes, and one is
// always needed.
func TestQuorumResuming(t *testing.T) {
	p := &Policy{quorum: map[Kind]int{AdminAdd: 3}}
	for left, want := range []int{1, 1, 2, 3, 3, 3} {
		if got := p.QuorumResuming(left).Administrators; got != want {
			t.Errorf("with %d left it takes %d, want %d", left, got, want)
		}
	}
}

// TestNeedsAll: a quorum of everyone who can countersign is one that a single absence blocks.
func TestNeedsAll(t *testing.T) {
	p := &Policy{quorum: map[Kind]int{KeyDestroy: 3, PolicyApply: 2, AdminAdd: 3, StoreBackup: 0}}
	for able, want := range map[int][]Kind{1: nil, 2: {PolicyApply}, 3: {KeyDestroy, AdminAdd}, 4: nil} {
		if got := p.NeedsAll(able); !slices.Equal(got, want) {
			t.Errorf("of %d administrators: %v, want %v", able, got, want)
		}
	}
}

// TestActivatesItself: a version that key.rotate makes comes into use without key.activate.
func TestActivatesItself(t *testing.T) {
	for rotate, want := range map[int]int{1: 1, 2: 0, 3: 0} {
		p := &Policy{quorum: map[Kind]int{KeyRotate: rotate, KeyActivate: 2, PolicyApply: 3, AdminAdd: 3}}
		all := p.Evasions()
		if len(all) != want || want == 1 && (all[0].Kind != KeyActivate || all[0].By != KeyRotate) {
			t.Errorf("rotation by %d: %v", rotate, all)
		}
	}
}
