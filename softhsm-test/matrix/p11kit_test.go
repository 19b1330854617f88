package matrix

import (
	"os"
	"path/filepath"
	"testing"

	"countersign/hsm/hsmtest"
)

// proxy is p11-kit's module, which shows the modules of its configuration, here SoftHSM.
var proxy = module{
	name: "p11-kit-proxy", packages: []string{"p11-kit-modules", "p11-kit"}, everyDay: true, long: true,
	setUp: func(t *testing.T) token {
		s := hsmtest.NewSoftHSM(t)
		s.Setenv(t)
		home := t.TempDir()
		conf := filepath.Join(home, ".config", "pkcs11")
		if err := os.MkdirAll(filepath.Join(conf, "modules"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(conf, "pkcs11.conf"), "user-config: only\n")
		write(t, filepath.Join(conf, "modules", "softhsm.module"), "module: "+s.Module+"\n")
		hsmtest.Worker(t) // go build needs the home that it had
		t.Setenv("HOME", home)
		t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
		return token{library: library(t, "p11-kit-proxy.so"), label: s.Label, pin: s.PIN}
	},
}

// remote is SoftHSM behind the server of p11-kit, which has its own protocol on a socket
// and supports the mechanisms whose parameters it knows.
var remote = module{
	name: "p11-kit remote", packages: []string{"p11-kit", "p11-kit-modules"},
	setUp: func(t *testing.T) token {
		s := hsmtest.NewSoftHSM(t)
		s.Setenv(t)
		path := filepath.Join(t.TempDir(), "socket")
		daemon(t, "p11-kit", "server", "--foreground", "--provider", s.Module, "--name", path, "pkcs11:token="+s.Label)
		eventually(t, "the server's socket is there", func() bool { return exists(path) })
		t.Setenv("P11_KIT_SERVER_ADDRESS", "unix:path="+path)
		return token{library: library(t, "p11-kit-client.so"), label: s.Label, pin: s.PIN}
	},
}
