package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

// SoftHSM is the PKCS#11 module of Debian's package softhsm2.
const SoftHSM = "/usr/lib/softhsm/libsofthsm2.so"

// Object is a private or secret key as OpenSC's pkcs11-tool lists it.
type Object struct{ Label, ID, Access string }

// Objects lists the private and secret keys on a SoftHSM token. env names its directory. A
// key without a label is left out: the module was killed while it wrote the key.
func Objects(ctx context.Context, pin string, env []string) []Object {
	out := Tool(ctx, env, "pkcs11-tool", "--module", SoftHSM, "--login", "--pin", pin, "--list-objects")
	var all []Object
	key := false
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, " ") {
			key = strings.HasPrefix(line, "Private Key Object") || strings.HasPrefix(line, "Secret Key Object")
			if key && (len(all) == 0 || all[len(all)-1].Label != "") {
				all = append(all, Object{})
			}
			continue
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !key {
			continue
		}
		last := &all[len(all)-1]
		switch value = strings.TrimSpace(value); name {
		case "label":
			last.Label = value
		case "ID":
			last.ID = value
		case "Access":
			last.Access = value
		}
	}
	if n := len(all); n > 0 && all[n-1].Label == "" {
		all = all[:n-1]
	}
	return all
}

// Tool runs a program of Debian's, which must succeed, and returns its output.
func Tool(ctx context.Context, env []string, name string, args ...string) string {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		Do(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String()))
	}
	return string(out)
}

// FreeAddress returns a loopback address with a port on which no process listens.
func FreeAddress() string {
	l := Must(net.Listen("tcp", "127.0.0.1:0"))
	Do(l.Close())
	return l.Addr().String()
}
