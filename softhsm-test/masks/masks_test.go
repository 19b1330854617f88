// Package masks takes an appliance through its main jobs behind masks of package profiles: init, enrolment with a password,
// levels 1 to 3, a wrong password, a rotation of every key, a restart, and a backup. What a masked module cannot do is
// refused with an error that names what is missing. A mask proves nothing about the vendor's device.
package masks

import (
	"os"
	"slices"
	"testing"

	"countersign/softhsm-test/harness"
)

// course is how far the appliance gets behind a mask.
type course struct {
	profile string
	host    bool   // with hsm.password_check = "host"
	refusal string // in the error of countersignd init; "" if it works
	lacking string // in the error of countersignd init with a backup key; "" if keys have sealed copies
}

var courses = []course{
	{profile: "securosys"},
	{profile: "marvell", lacking: "CKM_AES_ECB_ENCRYPT_DATA"},
	{profile: "securosys", host: true},
	{profile: "nethsm", refusal: "CKM_ECDH1_DERIVE"},
}

func (c course) name() string {
	if c.host {
		return c.profile + " with checks on the host"
	}
	return c.profile
}

// brief are the profiles of go test -short.
var brief = []string{"marvell", "nethsm"}

func TestMain(m *testing.M) {
	s := harness.Suite{Name: "hsm-masks"}
	for _, c := range courses {
		s.Sections = append(s.Sections, c.name())
	}
	harness.Main(m, s)
}

// TestMasks runs each course. -short runs some.
func TestMasks(t *testing.T) {
	t.Parallel()
	harness.Run(t, func(r *harness.Report) {
		bin := harness.Must(harness.Built())
		for _, c := range courses {
			if testing.Short() && !slices.Contains(brief, c.name()) {
				continue
			}
			r.Section(c.name(), func() {
				s := open(r, bin, c)
				defer s.close()
				s.run(r.Context())
			})
		}
	})
}

func TestBreaks(t *testing.T) {
	harness.TestBreaks(t, harness.Broken{Break: "nonsense", Exit: 2})
}

func write(path, text string) { harness.Do(os.WriteFile(path, []byte(text), 0o600)) }
