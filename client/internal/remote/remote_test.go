package remote

import (
	"errors"
	"testing"

	"countersign/protocol"
	"countersign/protocol/trust"
)

// TestNoAuthority: the error wraps CodeCertificate, and has the dates of a key of `ca` only if they explain it.
func TestNoAuthority(t *testing.T) {
	const now, day = 1_800_000_000, 86_400
	ca := func(notBefore uint64) trust.Key {
		return trust.Key{KeyCert: trust.KeyCert{Epoch: 1, Use: trust.UseCA, NotBefore: notBefore, NotAfter: notBefore + day}}
	}
	for name, tc := range map[string]struct {
		later []trust.Key
		dated bool
	}{
		"no key":                  {nil, false},
		"a key of later":          {[]trust.Key{ca(now + 9*day)}, true},
		"a key that is over":      {[]trust.Key{ca(now - 9*day)}, true},
		"a key that is in force":  {[]trust.Key{ca(now)}, false},
		"a key of another use":    {[]trust.Key{{KeyCert: trust.KeyCert{Use: trust.UseKEM, NotBefore: now + 9*day}}}, false},
		"over, and one in force":  {[]trust.Key{ca(now - 9*day), ca(now)}, true},
		"in force, and one later": {[]trust.Key{ca(now), ca(now + 9*day)}, true},
	} {
		_, err := caKeys(trust.State{Later: tc.later}, now)
		var dated *trust.DateError
		if !errors.Is(err, protocol.CodeCertificate) || errors.As(err, &dated) != tc.dated {
			t.Errorf("%s: %v", name, err)
		}
	}
}
