package version

import (
	"runtime"
	"strings"
	"testing"
)

// TestOf: a build without a version says so, and one with a version shows it beside the compiler's.
func TestOf(t *testing.T) {
	before := release
	t.Cleanup(func() { release = before })
	for _, c := range []struct{ release, want string }{
		{"", "countersignd unknown"},
		{"v1.2.3-4-gabcdef", "countersignd v1.2.3-4-gabcdef"},
	} {
		release = c.release
		line := Of("countersignd").String()
		if !strings.HasPrefix(line, c.want) || !strings.HasSuffix(line, ", "+runtime.Version()) {
			t.Errorf("%q, want %q and %q", line, c.want, runtime.Version())
		}
	}
}
