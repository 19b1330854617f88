package policy

import (
	"testing"

	"countersign/protocol"
)

func TestMinorUnits(t *testing.T) {
	for _, tc := range []struct {
		number, currency string
		minor            uint64
	}{
		{"50.00", "EUR", 5000},
		{"50", "EUR", 5000},
		{"0.05", "EUR", 5},
		{"0", "EUR", 0},
		{"50", "JPY", 50},
		{"0", "JPY", 0},
		{"1.005", "KWD", 1005},
		{"9999999999999.99", "USD", protocol.MaxMinor},
	} {
		digits, err := minorDigits(tc.currency)
		if err != nil {
			t.Fatal(err)
		}
		if minor, err := parseMinor(tc.number, digits); err != nil || minor != tc.minor {
			t.Errorf("%s %s: %d, %v; want %d", tc.number, tc.currency, minor, err, tc.minor)
		}
	}
	for _, bad := range []string{
		"", " ", "50.0", "50.", ".50", "50.000", "-1", "+1", "1e3", "1_000", "1,00", "1.0.0", "01", "10000000000000.00", "50 ", "٥",
	} {
		if minor, err := parseMinor(bad, 2); err == nil {
			t.Errorf("%q read as %d", bad, minor)
		}
	}
	if _, err := parseMinor("50.00", 0); err == nil {
		t.Error("decimals of a currency that has none were taken")
	}
	for _, bad := range []string{"", "eur", "EURO", "XXX"} {
		if digits, err := minorDigits(bad); err == nil {
			t.Errorf("currency %q has %d digits", bad, digits)
		}
	}
}
