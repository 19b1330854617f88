package shim_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/hsm/hsmtest"
	"countersign/softhsm-test/masks/profiles"
	"countersign/softhsm-test/shim"
)

// plain is what the probes say of SoftHSM, without a mask.
var plain = map[string]string{
	"login": "ok", "copy": "ok", "set-id": "ok", "ecdh-null": "ok", "ecdh-aes": "ok", "ecdh-sha256": "CKR_MECHANISM_PARAM_INVALID",
	"ecb-data": "ok", "digest": "ok", "hmac-generic": "ok", "hmac-typed": "CKR_TEMPLATE_INCONSISTENT", "hmac-unsized": "CKR_TEMPLATE_INCONSISTENT",
	"hmac-nshield": "CKR_MECHANISM_INVALID", "hmac-long": "ok", "kwp-210a": "ok", "kwp-luna": "CKR_MECHANISM_INVALID",
	"kwp-marvell": "CKR_MECHANISM_INVALID", "session-pair": "ok", "token-pair": "ok", "closed-public": "ok", "others": "ok", "list": "0x1104 0x210a",
}

const (
	noFunction  = "CKR_FUNCTION_NOT_SUPPORTED"
	noMechanism = "CKR_MECHANISM_INVALID"
	noParameter = "CKR_MECHANISM_PARAM_INVALID"
	noValue     = "CKR_ATTRIBUTE_VALUE_INVALID"
	unfit       = "CKR_TEMPLATE_INCONSISTENT"
)

// masked is what the probes say otherwise behind each mask.
var masked = map[string]map[string]string{
	"luna": {"kwp-210a": noMechanism, "kwp-luna": "ok", "ecdh-sha256": "ok", "list": "0x1104 0x80000171"},
	"luna-fips": {
		"kwp-210a": noMechanism, "kwp-luna": "ok", "ecdh-sha256": "ok", "list": "0x80000171",
		"ecdh-null": noParameter, "ecdh-aes": noParameter, "ecb-data": noMechanism,
	},
	"nshield": {
		"hmac-generic": unfit, "hmac-nshield": "ok", "ecdh-sha256": unfit, "hmac-long": unfit, "others": "0 of 2 objects",
		"list": "0x1104 0x210a 0xde436997",
	},
	"aws-cloudhsm-5": {
		"copy": noFunction, "set-id": noFunction, "ecdh-null": noParameter, "ecdh-aes": noParameter, "ecb-data": noMechanism,
		"hmac-long": "CKR_DATA_LEN_RANGE", "kwp-210a": noMechanism, "kwp-marvell": "ok", "closed-public": noValue, "list": "0x8000216f",
	},
	"yubihsm2": {
		"copy": noFunction, "ecdh-aes": noValue, "ecdh-sha256": unfit, "ecb-data": noValue, "hmac-generic": noValue,
		"hmac-typed": noValue, "hmac-unsized": "ok", "hmac-nshield": unfit, "hmac-long": noValue, "kwp-210a": noValue, "kwp-luna": noValue, "kwp-marvell": noValue,
		"session-pair": noValue, "list": "",
	},
	"securosys": {"ecdh-sha256": "ok"},
	"marvell":   {"ecdh-sha256": "ok", "set-id": "CKR_ATTRIBUTE_READ_ONLY", "ecb-data": noMechanism, "list": "0x210a"},
	"ep11": {
		"ecdh-null": "CKR_ATTRIBUTE_SENSITIVE", "ecdh-sha256": "ok", "ecb-data": noMechanism, "kwp-210a": noMechanism, "list": "",
	},
	"nethsm": {
		"copy": "0x1b", "ecdh-null": noFunction, "ecdh-aes": noFunction, "ecdh-sha256": noFunction,
		"ecb-data": noMechanism, "digest": noFunction, "kwp-210a": noMechanism, "hmac-long": noMechanism, "hmac-generic": noMechanism, "list": "",
	},
}

// probed runs the probes in another process, behind a mask; "": without one.
func probed(t *testing.T, token hsmtest.SoftHSM, mask, pin string) map[string]string {
	t.Helper()
	s, err := shim.New(bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], s.Module)
	cmd.Env = append(append(os.Environ(), token.Env(), probeVariable+"="+pin, probeVariable+"_PLAIN="+token.PIN), s.Env()...)
	if mask != "" {
		cmd.Env = append(cmd.Env, mask)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var results map[string]string
	if err := json.Unmarshal(raw, &results); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return results
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: %s, want %s", name, got[name], want[name])
		}
	}
}

// TestMasks: each mask refuses what it takes away, what it renumbers or computes works, and nothing else changes.
func TestMasks(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		token := hsmtest.NewSoftHSM(t)
		compare(t, probed(t, token, "", token.PIN), plain)
	})
	all, err := profiles.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			token := hsmtest.NewSoftHSM(t)
			env, err := p.Write(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			pin, other := token.PIN, "user:"+token.PIN
			if p.UserPassword() {
				pin, other = other, pin
			}
			want := maps.Clone(plain)
			maps.Copy(want, masked[p.Name])
			compare(t, probed(t, token, env, pin), want)
			if got := probed(t, token, env, other)["login"]; got != "CKR_PIN_INCORRECT" {
				t.Errorf("a PIN in the other form: %s", got)
			}
		})
	}
}

// TestHiddenUnless: nShield's variable makes it show what other processes make.
func TestHiddenUnless(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	p, err := profiles.Named("nshield")
	if err != nil {
		t.Fatal(err)
	}
	env, err := p.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CKNFAST_ASSUME_SINGLE_PROCESS", "0")
	if got := probed(t, token, env, token.PIN)["others"]; got != "ok" {
		t.Errorf("a key of another process: %s", got)
	}
}

// TestMaskNonsense: a mask without effect ends the process.
func TestMaskNonsense(t *testing.T) {
	token := hsmtest.NewSoftHSM(t)
	for _, text := range []string{
		"absent C_Sing", "absent C_Sign CKR_NONSENSE", "lacks CKM_NONSENSE", "number CKM_ECDSA", "kdf CKD_NULL compute", "kdf CKD_NULL forbid",
		"in nothing CKA_ID refuse", "in key CKA_ID forbid", "in key CKA_PRIVATE only", "read CKA_ID only true", "longest C_Verify 5",
		"login password", "hidden NAME", "nonsense",
	} {
		path := filepath.Join(t.TempDir(), "nonsense.mask")
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("pkcs11-tool", "--module", filepath.Join(bin, shim.Library), "--show-info")
		cmd.Env = append(os.Environ(), token.Env(), "FAULTSHIM_MASK="+path)
		out, _ := cmd.CombinedOutput() // the exit code is compared
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), "faultshim: mask") {
			t.Errorf("%s: exit code %d: %s", text, code, out)
		}
	}
}
