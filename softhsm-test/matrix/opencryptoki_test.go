package matrix

import (
	"os"
	"testing"
)

// openCryptoki is the module of IBM with its software token. It has one state for the
// whole machine and a daemon that shares it, so each run initializes it again.
var openCryptoki = module{
	name: "openCryptoki", packages: []string{"opencryptoki"},
	setUp: func(t *testing.T) token {
		const pin, soPIN = "70418", "87654321" // the token's own until it is initialized; a PIN has 4 to 8 characters
		if os.Getuid() != 0 {
			t.Skip("only root can run pkcsslotd")
		}
		lib := library(t, "libopencryptoki.so")
		if exists(slotSocket) {
			t.Skip("another pkcsslotd runs, whose tokens are not ours")
		}
		for _, dir := range []string{"", "/swtok", "/lite", "/icsf", "/tpm", "/ccatok", "/ep11tok"} {
			if err := os.MkdirAll("/var/lock/opencryptoki"+dir, 0o770); err != nil {
				t.Fatal(err)
			}
		}
		daemon(t, "pkcsslotd", "-f")
		eventually(t, "pkcsslotd's socket is there", func() bool { return exists(slotSocket) })
		t.Cleanup(func() { _ = os.Remove(slotSocket) }) // a daemon that is killed leaves it
		initialize(t, lib, secrets{pin, soPIN})
		return token{library: lib, label: tokenLabel, pin: pin}
	},
}

const slotSocket = "/var/run/pkcsslotd.socket"
