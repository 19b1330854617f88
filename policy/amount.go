package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxMinor is the largest amount OA1 carries, in minor units: it is below 10^15
// (PROTOCOL.md §3).
const MaxMinor uint64 = 1e15 - 1

// Amount is a sum of money.
type Amount struct {
	Minor    uint64 // in minor units of the currency (cents of EUR, whole JPY), at most MaxMinor
	Currency string // ISO 4217 alphabetic code, three of A–Z
}

// ParseAmount reads "50.00 EUR", the form that [Amount.String] writes. The
// fraction may be left out; if it is there it has exactly the digits of the
// currency's minor unit.
func ParseAmount(s string) (Amount, error) {
	number, currency, ok := strings.Cut(s, " ")
	if !ok {
		return Amount{}, fmt.Errorf("amount %q: want a number and a currency, such as \"50.00 EUR\"", s)
	}
	digits, err := MinorDigits(currency)
	if err != nil {
		return Amount{}, fmt.Errorf("amount %q: %w", s, err)
	}
	minor, err := parseMinor(number, digits)
	if err != nil {
		return Amount{}, fmt.Errorf("amount %q: %w", s, err)
	}
	return Amount{Minor: minor, Currency: currency}, nil
}

// String writes the amount in major units, "50.00 EUR". A currency whose minor
// unit is not known is written in minor units and says so.
func (a Amount) String() string {
	digits, err := MinorDigits(a.Currency)
	if err != nil {
		return fmt.Sprintf("%d minor units of %q", a.Minor, a.Currency)
	}
	s := fmt.Sprintf("%0*d", digits+1, a.Minor)
	if digits == 0 {
		return s + " " + a.Currency
	}
	return s[:len(s)-digits] + "." + s[len(s)-digits:] + " " + a.Currency
}

// parseMinor reads a decimal number of major units as minor units.
func parseMinor(s string, digits int) (uint64, error) {
	whole, fraction, dotted := strings.Cut(s, ".")
	switch {
	case !allDigits(whole) || dotted && !allDigits(fraction):
		return 0, errors.New("want digits with at most one decimal point")
	case len(whole) > 1 && whole[0] == '0':
		return 0, errors.New("a leading zero is not allowed")
	case dotted && len(fraction) != digits:
		return 0, fmt.Errorf("want %d digits after the decimal point or none, found %d", digits, len(fraction))
	}
	if !dotted {
		fraction = strings.Repeat("0", digits)
	}
	minor, err := strconv.ParseUint(whole+fraction, 10, 64)
	if err != nil || minor > MaxMinor {
		return 0, fmt.Errorf("at most %d minor units are allowed", MaxMinor)
	}
	return minor, nil
}

func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// minorUnits lists the active currencies of ISO 4217 by the number of digits of
// their minor unit. Funds codes, metals and currencies without circulation are
// left out.
var minorUnits = map[int]string{
	0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
	2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD " +
		"CAD CDF CHF CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS " +
		"GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP " +
		"LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK " +
		"NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS " +
		"SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VES WST XCD " +
		"YER ZAR ZMW",
	3: "BHD IQD JOD KWD LYD OMR TND",
}

var minorDigits = indexMinorUnits()

func indexMinorUnits() map[string]int {
	index := make(map[string]int)
	for digits, codes := range minorUnits {
		for code := range strings.FieldsSeq(codes) {
			index[code] = digits
		}
	}
	return index
}

// MinorDigits returns how many digits the minor unit of a currency has: 0 for
// JPY, 2 for EUR, 3 for KWD (ISO 4217). A code that is not three of A–Z or not
// in the table is an error that says which.
func MinorDigits(currency string) (int, error) {
	if len(currency) != 3 || strings.Trim(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return 0, fmt.Errorf("currency %q: want three letters A to Z", currency)
	}
	digits, ok := minorDigits[currency]
	if !ok {
		return 0, fmt.Errorf("currency %q: no active ISO 4217 code with a known minor unit", currency)
	}
	return digits, nil
}
