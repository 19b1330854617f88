// Package masks takes an appliance through its main jobs behind each mask of package profiles: init, enrolment with a
// password, levels 1 to 3, a wrong password, a rotation of every key, a restart, and a backup. If a masked module
// cannot do something, the appliance refuses it with an error that names the mechanism or setting. A mask proves
// nothing about the vendor's device.
package masks

import (
	"os"
	"slices"
	"testing"

	"countersign/softhsm-test/harness"
	"countersign/softhsm-test/masks/profiles"
)

// course is how far the appliance gets behind a mask.
type course struct {
	profile string
	host    bool   // with hsm.password_check = "host"
	refusal string // in the error of countersignd init; "" if it works
	code    int    // exit code of that error; 0 stands for 69
	lacking string // in the error of countersignd init with a backup key; "" if keys have sealed copies
	unkept  string // in the log of an enrolment with a password; "" if passwords work
	way     string // that hsm status names; "": any
	fault   string // a rule of the shim for a failure that the vendor documents; "": no failure
}

var courses = []course{
	// A member of the HA group is lost.
	{profile: "luna", way: "CKM_LUNA_AES_KWP (0x80000171)", fault: "C_Sign rv CKR_DEVICE_ERROR n=1"},
	{profile: "luna-fips", way: "for suite 2", lacking: "CKM_AES_ECB_ENCRYPT_DATA", unkept: "CKM_ECDH1_DERIVE"},
	{profile: "nshield", way: "CKK_SHA256_HMAC by CKM_NC_SHA256_HMAC_KEY_GEN"},
	{profile: "aws-cloudhsm-5", refusal: "CKD_NULL"},
	{profile: "yubihsm2", refusal: `hsm.password_check = "host"`, code: failed},
	{profile: "yubihsm2", host: true, lacking: "CKM_AES_ECB_ENCRYPT_DATA", way: "passwords: checked in the memory of hsm-worker"},
	// No device is left, for one worker.
	{profile: "securosys", fault: "C_SignInit rv CKR_TOKEN_NOT_PRESENT n=1"},
	// Another program of the host logs out.
	{
		profile: "marvell", lacking: "CKM_AES_ECB_ENCRYPT_DATA", way: "import of verifiers: in the memory of hsm-worker",
		fault: "C_SignInit logout n=1",
	},
	{profile: "ep11", refusal: `hsm.password_check = "host"`, code: failed},
	{
		profile: "ep11", host: true, way: "a secret that C_DigestKey hashes inside the token", lacking: "CKM_AES_ECB_ENCRYPT_DATA",
		unkept: "CKM_ECDH1_DERIVE",
	},
	{profile: "nethsm", refusal: "CKM_ECDH1_DERIVE"},
}

func (c course) name() string {
	if c.host {
		return c.profile + " with checks on the host"
	}
	return c.profile
}

// brief are the courses of go test -short.
var brief = []string{"luna", "nethsm"}

// breakTrial believes the first way of each kind without a trial, listed or not.
const breakTrial = "trial"

var edits = map[string][]harness.Edit{
	breakTrial: {
		{File: "hsm/pkcs11/trial.go", Old: "err := t.seeing(secretUsages, func() error { return t.tryMACKey(s) })", New: "err := error(nil)"},
		{File: "hsm/pkcs11/trial.go", Old: "if !t.lists(t.ways.wrapping.mechanism) && t.ways.wrapping.mechanism < pkcs11.CKM_VENDOR_DEFINED {", New: "if false {"},
		{File: "hsm/pkcs11/trial.go", Old: "err := t.outcome(func() error { return t.tryWrapping(s) })", New: "err := error(nil)"},
	},
}

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "hsm-masks", Breaks: []string{breakTrial}, Sections: []string{suites}}
	for _, c := range courses {
		s.Sections = append(s.Sections, c.name())
	}
	harness.Main(m, s)
}

// TestMasks runs each course; go test -short runs some.
func TestMasks(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		bin := harness.Must(harness.Built())
		if e := edits[harness.Break()]; e != nil {
			bin = harness.Must(bin.Broken(t.Context(), e, ""))
			t.Cleanup(func() { _ = os.RemoveAll(string(bin)) }) // at worst it stays in the temporary directory
		}
		for _, c := range courses {
			if harness.Brief() && !slices.Contains(brief, c.name()) {
				continue
			}
			r.Section(c.name(), func() {
				s := open(r, bin, c)
				defer s.close()
				s.run(r.Context())
			})
		}
		if !harness.Brief() {
			r.Section(suites, func() { serveBoth(r.Context(), r, bin) })
		}
	})
}

// TestCourses: every mask has a course.
func TestCourses(t *testing.T) {
	for _, p := range harness.Must(profiles.All()) {
		if !slices.ContainsFunc(courses, func(c course) bool { return c.profile == p.Name }) {
			t.Errorf("no course for %s", p.Name)
		}
	}
}

func TestEdits(t *testing.T) { harness.TestEdits(t, edits) }

func TestBreaks(t *testing.T) {
	harness.TestBreaks(
		t,
		harness.Broken{Args: []string{"-only", "nethsm"}, Line: " passed, 0 failed"},
		harness.Broken{Short: true, Break: breakTrial, Args: []string{"-only", "nshield"}, Exit: 1},
		harness.Broken{Break: breakTrial, Args: []string{"-only", "luna"}, Exit: 1},
		harness.Broken{Break: "nonsense", Exit: 2},
	)
}

func write(path, text string) { harness.Do(os.WriteFile(path, []byte(text), 0o600)) }
