package profiles

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	sourceLine = regexp.MustCompile(`^# ([A-Z][0-9]?) \S+\.\S+`)
	cited      = regexp.MustCompile(`^(?:[A-Z][0-9]? ?)+`)
)

// TestSources: each fact names sources, the head of the file names each of them, and each is used.
func TestSources(t *testing.T) {
	all, err := All()
	if err != nil || len(all) < 9 {
		t.Fatalf("%d masks, %v", len(all), err)
	}
	for _, p := range all {
		var known, used []string
		if len(p.Title) < 10 {
			t.Errorf("%s has the title %q", p.Name, p.Title)
		}
		for line := range strings.Lines(string(p.text)) {
			if m := sourceLine.FindStringSubmatch(line); m != nil {
				known = append(known, m[1])
			}
			fact, comment, _ := strings.Cut(strings.TrimSpace(line), "#")
			if strings.TrimSpace(fact) == "" {
				continue
			}
			names := strings.Fields(cited.FindString(strings.TrimSpace(comment)))
			if len(names) == 0 {
				t.Errorf("%s: a fact without a source: %s", p.Name, line)
			}
			used = append(used, names...)
		}
		slices.Sort(known)
		slices.Sort(used)
		if used = slices.Compact(used); !slices.Equal(known, used) {
			t.Errorf("%s names the sources %v and uses %v", p.Name, known, used)
		}
	}
}

func TestNamed(t *testing.T) {
	for name, want := range map[string]bool{"luna": false, "aws-cloudhsm-5": true, "marvell": true} {
		if p, err := Named(name); err != nil || p.UserPassword() != want {
			t.Errorf("%s: user:password %v, %v", name, p.UserPassword(), err)
		}
	}
	if _, err := Named("nothing"); err == nil {
		t.Error("a mask that is not there")
	}
}
