// Package version describes the build of the running program.
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// release is the tag and commit of the source (git describe), which the Makefile sets with -ldflags -X.
var release string

// Info describes a build.
type Info struct {
	Program string `json:"program"`
	Version string `json:"version"`          // of the module or of the source; "unknown" if the build does not have it
	Commit  string `json:"commit,omitempty"` // of the source, in hexadecimal; "" if the build does not have it
	Go      string `json:"go"`               // version of the compiler
}

// Of returns the description of the running program, which has the given name.
func Of(program string) Info {
	v := Info{Program: program, Version: release, Go: runtime.Version()}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		v.Version = cmp.Or(v.Version, unknown)
		return v
	}
	if build.Main.Version != develVersion {
		v.Version = cmp.Or(v.Version, build.Main.Version)
	}
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	v.Version = cmp.Or(v.Version, unknown)
	return v
}

// Versions of builds without one.
const (
	unknown      = "unknown"
	develVersion = "(devel)" // what the go command writes into a build of a working tree
)

// String returns one line, without an end of line.
func (v Info) String() string {
	line := v.Program + " " + v.Version
	if v.Commit != "" {
		line += ", commit " + v.Commit
	}
	return line + ", " + v.Go
}
