package main

import (
	"testing"
	"time"

	"countersign/appliance/enrol"
	"countersign/internal/config"
)

func TestAttestBy(t *testing.T) {
	if attestBy(config.UV{}) != nil {
		t.Error("no command made a verifier")
	}
	t.Setenv("DAEMON_SECRET", "canary")
	t.Setenv("VENDOR", "7")
	for _, c := range []struct {
		name, script, want string
	}{
		{"named", `grep -q '"attestation":"AQID"' && echo android-key`, "android-key"},
		{"refused", `exit 1`, ""},
		{"environment", `cat >/dev/null; [ -z "$DAEMON_SECRET" ] && [ "$VENDOR" = 7 ] && echo alone`, "alone"},
		{"silent", `cat >/dev/null`, ""},
		{"endless", `exec sleep 30`, ""},
		{"long", `cat >/dev/null; head -c 100 /dev/zero | tr '\\0' x`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			attest := attestBy(config.UV{
				Attest: []string{"/bin/sh", "-c", c.script}, Timeout: config.Duration{Duration: time.Second}, Environment: []string{"VENDOR"},
			})
			format, err := attest(t.Context(), enrol.Attestation{Statement: []byte{1, 2, 3}})
			if format != c.want || (err == nil) != (c.want != "") {
				t.Errorf("format %q, %v; want %q", format, err, c.want)
			}
		})
	}
}
