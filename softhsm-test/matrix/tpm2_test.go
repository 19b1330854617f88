package matrix

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// tpm2 is a TPM 2.0, here one in software, which serves one connection at a time and is
// slow.
var tpm2 = module{
	name: "tpm2-pkcs11", packages: []string{"libtpm2-pkcs11-1", "swtpm", "libtss2-tcti-swtpm0"},
	setUp: func(t *testing.T) token {
		const pin = "70418"
		dir := t.TempDir()
		state, store, socket := filepath.Join(dir, "state"), filepath.Join(dir, "store"), filepath.Join(dir, "tpm")
		for _, d := range []string{state, store} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		daemon(t, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--flags", "not-need-init,startup-clear",
			"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl")
		eventually(t, "the TPM's socket is there", func() bool { return exists(socket) })
		t.Setenv("TPM2_PKCS11_STORE", store)
		t.Setenv("TPM2_PKCS11_TCTI", "swtpm:path="+socket)
		lib := library(t, "libtpm2_pkcs11.so")
		initialize(t, lib, secrets{pin, "so-" + pin})
		return token{library: lib, label: tokenLabel, pin: pin, workers: 1, timeout: 20 * time.Second}
	},
}
