package protocol

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
)

// Service is the kind of operation that a client requests (P1.3). Numbers below [FirstService] are
// reserved.
type Service uint64

// The reserved services that have a meaning. No device acts on them.
const (
	ServiceDryRun     Service = 0
	ServiceStatus     Service = 2
	ServiceCoApproval Service = 3
	FirstService      Service = 16
)

func (s Service) String() string { return strconv.FormatUint(uint64(s), 10) }

// ParseService parses a decimal number.
func ParseService(s string) (Service, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, CodeFormat.Errorf("service %q is not a number", s)
	}
	return Service(n), nil
}

// Level is the strength of an authorization, 1 to 4.
type Level uint8

func (l Level) String() string { return strconv.Itoa(int(l)) }

// ParseLevel parses one digit, 1 to 4.
func ParseLevel(s string) (Level, error) {
	if len(s) != 1 || s[0] < '1' || s[0] > '0'+byte(maxLevel) {
		return 0, CodeFormat.Errorf("level %q: want 1 to 4", s)
	}
	return Level(s[0] - '0'), nil
}

const maxLevel Level = 4

// Factors returns the factors that a level requires, PROTOCOL.md §4; ok is false if the level does
// not exist.
func (l Level) Factors() (f Factors, ok bool) {
	if l < 1 || l > maxLevel {
		return 0, false
	}
	return Factors(1)<<l - 1, true
}

// Floor is the lowest level that a client accepts for a service.
type Floor struct {
	Service  Service `json:"service"`
	MinLevel Level   `json:"min_level"`
}

// Factors is a set of authentication factors, the bits of P2.4.
type Factors uint8

// The factors. FactorStrict authenticates nothing: it announces that the device learns the client's
// identity.
const (
	FactorSignature      Factors = 1
	FactorPassword       Factors = 2
	FactorUV             Factors = 4
	FactorSecondApprover Factors = 8
	FactorStrict         Factors = 16

	// KnownFactors are all of them.
	KnownFactors = FactorSignature | FactorPassword | FactorUV | FactorSecondApprover | FactorStrict
)

var factorNames = []string{"signature", "password", "uv", "second-approver", "strict", "32", "64", "128"}

// Has reports whether f contains every factor of want.
func (f Factors) Has(want Factors) bool { return f&want == want }

// String joins the names with "+".
func (f Factors) String() string {
	var names []string
	for i, name := range factorNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "+")
}

// Result is the result of an authorization (P4.1).
type Result uint8

// The results of P4.1.
const (
	ResultDenied   Result = 0
	ResultApproved Result = 1
	ResultRetry    Result = 2
	ResultPending  Result = 3
)

func (r Result) String() string {
	switch r {
	case ResultDenied:
		return "denied"
	case ResultApproved:
		return "approved"
	case ResultRetry:
		return "retry"
	case ResultPending:
		return "pending"
	default:
		return "result " + strconv.Itoa(int(r))
	}
}

// Verdict is the user's answer (P3.1).
type Verdict uint8

// The verdicts of P3.1.
const (
	Refuse  Verdict = 0
	Approve Verdict = 1
)

func (v Verdict) String() string {
	switch v {
	case Refuse:
		return "refuse"
	case Approve:
		return "approve"
	default:
		return "verdict " + strconv.Itoa(int(v))
	}
}

// The key slots of P3.4, which select one of the client's keys.
const (
	SlotSigning = 1
	SlotUV      = 3
)

// currencies maps the ISO 4217 codes of money in use to the number of decimal digits of their minor
// unit. It leaves out metals, test codes and units of account.
var currencies = func() map[string]int {
	all := map[string]int{}
	for digits, codes := range map[int]string{
		0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
		2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP " +
			"CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS " +
			"INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN " +
			"MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE " +
			"SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR " +
			"ZMW ZWG",
		3: "BHD IQD JOD KWD LYD OMR TND",
	} {
		for code := range strings.FieldsSeq(codes) {
			all[code] = digits
		}
	}
	return all
}()

// MinorDigits returns the number of decimal digits of a currency's minor unit (ISO 4217). known is
// false for a currency that clients refuse (P2.7).
func MinorDigits(currency string) (digits int, known bool) {
	digits, known = currencies[currency]
	return digits, known
}

// Base64 is a byte string that JSON carries as canonical base64url without padding (RFC 4648 §5).
type Base64 []byte

var base64url = base64.RawURLEncoding.Strict()

func (b Base64) String() string { return base64url.EncodeToString(b) }

// MarshalText returns base64url without padding.
func (b Base64) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText rejects padding, white space and non-zero trailing bits with CodeFormat.
func (b *Base64) UnmarshalText(text []byte) error {
	// encoding/base64 skips line breaks.
	if bytes.ContainsAny(text, "\r\n") {
		return CodeFormat.Errorf("base64url with a line break")
	}
	decoded, err := base64url.AppendDecode([]byte{}, text)
	if err != nil {
		return CodeFormat.Errorf("base64url without padding: %v", err)
	}
	*b = decoded
	return nil
}
