package main

import (
	"bytes"
	"strings"
	"testing"
)

// said returns the output of go test -json for one test.
func said(name, action, log string) string {
	line := ""
	if log != "" {
		line = `{"Action":"output","Test":"` + testOf(name) + `","Output":"    x_test.go:1: ` + log + `\n"}` + "\n"
	}
	return line + `{"Action":"` + action + `","Test":"` + testOf(name) + `"}` + "\n"
}

// testOf returns the test of a module, or of a mask, whose name begins so.
func testOf(name string) string {
	if mask, ok := strings.CutPrefix(name, "mask "); ok {
		return tables[1].root + mask
	}
	return tables[0].root + name
}

var good = said("SoftHSM/P-256/Sign", "pass", "") +
	said("SoftHSM/Sealed/Restore/mac", "pass", "") + said("SoftHSM/Sealed/Restore/wrap", "pass", "") +
	said("SoftHSM/Sealed/Restore/sign-ed25519", "skip", "module lacks CKM_X: CKR_KEY_NOT_WRAPPABLE") +
	said("SoftHSM/Sealed/Restore", "pass", "") + said("SoftHSM/Sealed", "pass", "") +
	said("SoftHSM/HMAC/RoundTrip", "skip", "module lacks CKM_SHA256_HMAC: no") + said("SoftHSM/HMAC/Refused", "pass", "") +
	said("SoftHSM", "pass", "version: softhsm2 2.6") +
	said("NSS_softokn/P-256/Sign", "pass", "") + said("NSS_softokn", "pass", "") +
	said("p11-kit-proxy/P-256/Sign", "pass", "") + said("p11-kit-proxy", "pass", "")

func TestTable(t *testing.T) {
	var out, stderr bytes.Buffer
	absent := said("openCryptoki", "skip", "not installed: opencryptoki") +
		said("mask luna/P-256/Sign", "pass", "") + said("mask luna", "pass", "version: Luna 7") +
		said("mask nethsm", "fail", "module lacks CKM_ECDH1_DERIVE")
	if code := run(nil, strings.NewReader(good+absent), &out, &stderr); code != 0 {
		t.Errorf("exit code %d, %s", code, &stderr)
	}
	for _, want := range []string{
		"| SoftHSM, softhsm2 2.6 | yes | no |", "| yes, without sign-ed25519 |", "| CKM_SHA256_HMAC |",
		"| openCryptoki, | not installed: opencryptoki |", "| luna, Luna 7 | yes | no |",
		"| nethsm, | module lacks CKM_ECDH1_DERIVE | |", "\nSoftHSM behind a mask",
		"\nhsm-matrix: 4 modules, 2 masks, 4 passed, 0 failed\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct{ input, last string }{
		"a test":        {good + said("tpm2/Keys/List", "fail", "wrong") + said("tpm2", "fail", ""), "4 modules, 0 masks, 3 passed, 1 failed"},
		"one required":  {strings.ReplaceAll(good, "NSS_softokn", "other"), "3 modules, 0 masks, 3 passed, 1 failed"},
		"not installed": {strings.ReplaceAll(good, said("p11-kit-proxy/P-256/Sign", "pass", ""), ""), "3 modules, 0 masks, 2 passed, 1 failed"},
		"a mask":        {good + said("mask luna/HMAC/MAC", "fail", "wrong") + said("mask luna", "fail", ""), "3 modules, 1 masks, 3 passed, 1 failed"},
		"nothing":       {"FAIL\n", "0 modules, 0 masks, 0 passed, 3 failed"},
	} {
		var out, stderr bytes.Buffer
		if code := run(nil, strings.NewReader(c.input), &out, &stderr); code != 1 || !strings.HasSuffix(out.String(), "hsm-matrix: "+c.last+"\n") {
			t.Errorf("%s: exit code %d\n%s", name, code, &out)
		}
	}
}
