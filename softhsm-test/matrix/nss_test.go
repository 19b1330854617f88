package matrix

import (
	"path/filepath"
	"testing"
	"time"
)

// nss is the soft token of Firefox. It needs arguments for C_Initialize, which crypto11
// cannot pass, so it is opened without crypto11.
var nss = module{
	name: "NSS softokn", packages: []string{"libnss3", "libnss3-tools"}, everyDay: true,
	setUp: func(t *testing.T) token {
		dir := t.TempDir()
		pin := filepath.Join(dir, "pin")
		write(t, pin, "nss-pin-3097\n")
		command(t, "certutil", "-N", "-d", "sql:"+dir, "-f", pin)
		return token{
			library: library(t, "libsoftokn3.so"), label: "NSS Certificate DB", pin: "nss-pin-3097",
			initArgs: "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags=",
			timeout:  10 * time.Second, // it decrypts its database at each use of a key
		}
	},
}
