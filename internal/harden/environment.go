package harden

import "os"

// base are the variables that every child gets: where programs and files are, and how text and
// times are written.
var base = []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ"}

// Environment returns the environment of a child that another party wrote: of this process's variables,
// base and those named.
func Environment(names []string) []string {
	env := []string{} // nil would be the whole environment
	for _, name := range append(base[:len(base):len(base)], names...) {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
