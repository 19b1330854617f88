package masks

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"countersign/softhsm-test/harness"
)

// suites is the section in which two appliances serve one phone program.
const suites = "suites"

// serveBoth runs an appliance whose module can do suite 1 and one whose module can do suite 2 only. One phone
// program enrols and authorizes at both, each with a state directory.
func serveBoth(ctx context.Context, r *harness.Report, bin harness.Bin) {
	for _, c := range []struct{ profile, way string }{{"luna", "for suite 1 and suite 2"}, {"luna-fips", "for suite 2"}} {
		i := slices.IndexFunc(courses, func(known course) bool { return known.profile == c.profile })
		s := open(r, bin, courses[i])
		defer s.close() // both run to the end
		s.configure("")
		init := s.countersignd(ctx, "init")
		s.Check(init.Code == 0, "%s: init: exit code %d: %s", c.profile, init.Code, init.Stderr)
		s.serve(ctx)
		status := s.MustCtl(ctx, "hsm", "status").Stdout
		s.Check(strings.Contains(status, c.way) && strings.Contains(status, "suite 1") == (c.profile == "luna"), "%s: hsm status: %s", c.profile, status)
		s.door = harness.Must(s.OpenMachine(ctx, harness.MachineConfig{Dir: s.dir, Name: "door", Keys: "accept = [100, 200, 300]"}))
		phone := filepath.Join(s.dir, "phone")
		enrolled := s.Phone(ctx, phone, "enrol", "--url", s.URL, "--uv", harness.Must(s.Invite(ctx, "client", "dora")))
		s.Check(enrolled.Code == 0, "%s: enrol: exit code %d: %s", c.profile, enrolled.Code, enrolled.Stderr)
		level1 := s.Phone(ctx, phone, "authorize", "--service", "100", "--link", s.door.Link, "--yes")
		s.Check(level1.Code == 0, "%s: level 1: exit code %d: %s", c.profile, level1.Code, level1.Stderr)
		acts := harness.Must(s.door.Acts())
		s.Check(len(acts) == 1, "%s: %d acts for one approval", c.profile, len(acts))
	}
}
