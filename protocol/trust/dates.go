package trust

import (
	"errors"
	"fmt"
	"time"

	"countersign/protocol"
)

// DateError means that a certificate is not valid at a time. A wrong clock explains it too.
type DateError struct {
	Code        protocol.Code
	What        string // the certificate: "kem epoch 1"
	From, Until uint64 // Unix seconds, inclusive
	Now         uint64 // by the clock of the caller, in Unix seconds
	Peer        uint64 // by the appliance's clock, if it has just shown its time; 0: unknown
}

func (e *DateError) Error() string {
	text := fmt.Sprintf("%s is valid from %s to %s, and the clock here shows %s",
		e.What, date(e.From), date(e.Until), date(e.Now))
	if e.Peer != 0 {
		text += ", the appliance's " + date(e.Peer)
	}
	return fmt.Sprintf("%s: %v", text, e.Code)
}

// Unwrap returns the code.
func (e *DateError) Unwrap() error { return e.Code }

// maxDate is the last second of the year 9999. Later times cannot be formatted.
const maxDate = 253402300799

func date(unix uint64) string {
	return time.Unix(int64(min(unix, maxDate)), 0).UTC().Format(time.RFC3339)
}

// DateError returns the error for this certificate at now, in Unix seconds.
func (k KeyCert) DateError(code protocol.Code, now uint64) *DateError {
	what := fmt.Sprintf("%v epoch %d", k.Use, k.Epoch)
	return &DateError{Code: code, What: what, From: k.NotBefore, Until: k.NotAfter, Now: now}
}

// Unusable returns the reason why an MU brings a client no kem key: CodeStaleKey, as a [DateError] if one that the last
// root of the MU certifies is not valid at now. It returns CodeFormat for a malformed MU. now is in Unix seconds.
func (t State) Unusable(mu []byte, now uint64) error {
	update, err := ParseKeyUpdate(mu)
	if err != nil {
		return err
	}
	next, _, rest := t.advance(update.Certs)
	for _, b := range rest {
		k, err := VerifyKeyCert(b, next.Root)
		var dated *DateError
		if err == nil && k.Use == UseKEM && errors.As(k.AcceptableAt(now, nil), &dated) {
			dated.Code = protocol.CodeStaleKey
			return dated
		}
	}
	return protocol.CodeStaleKey
}
