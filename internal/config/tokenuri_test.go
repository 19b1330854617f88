package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTokenURI(t *testing.T) {
	const both = `uri = "pkcs11:token=payroll;serial=01?module-path=/lib/p11.so"` + "\n"
	for name, c := range map[string]struct {
		text, module, label, serial string
		problem                     string
	}{
		"alone":        {text: both, module: "/lib/p11.so", label: "payroll", serial: "01"},
		"and the same": {text: both + `token_label = "payroll"`, module: "/lib/p11.so", label: "payroll", serial: "01"},
		"no module":    {text: `uri = "pkcs11:token=payroll"`, module: "/usr/lib/softhsm/libsofthsm2.so", label: "payroll"},
		"serial only":  {text: `uri = "pkcs11:serial=01"`, module: "/usr/lib/softhsm/libsofthsm2.so", serial: "01"},
		"different":    {text: both + `token_label = "countersign"`, problem: `:3: hsm.token_label: "countersign" here and "payroll" as token in hsm.uri`},
		"no token":     {text: `uri = "pkcs11:"`, problem: "hsm.token_label: missing"},
		"malformed":    {text: `uri = "pkcs11:tokne=a"`, problem: ":2: hsm.uri: unknown attribute \"tokne\" (did you mean token?)"},
		"slot":         {text: `uri = "pkcs11:token=a;slot-id=1"`, problem: "slot-id selects nothing here"},
		"PIN source":   {text: `uri = "pkcs11:token=a?pin-source=file:/pin"`, problem: "pin-source is not used here"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte("[hsm]\n"+c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := LoadAppliance(path)
			if c.problem != "" {
				if err == nil || !strings.Contains(err.Error(), c.problem) {
					t.Errorf("%v, want %q", err, c.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if a.HSM.Module != c.module || a.HSM.TokenLabel != c.label || a.HSM.TokenSerial != c.serial {
				t.Errorf("module %s, label %q, serial %q", a.HSM.Module, a.HSM.TokenLabel, a.HSM.TokenSerial)
			}
		})
	}
}
