package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"countersign/protocol"
)

// parseAmount reads "12.00 EUR", or "12.00" with the currency apart. There are as
// many decimals as the currency has, or none.
func parseAmount(amount, currency string) (*protocol.Amount, error) {
	number, unit, both := strings.Cut(amount, " ")
	if both == (currency != "") {
		return nil, errors.New(`an amount is given as "12.00 EUR", or as 12.00 with --currency EUR`)
	}
	if !both {
		unit = currency
	}
	digits, known := protocol.MinorDigits(unit)
	if !known {
		return nil, fmt.Errorf("unknown currency %q", unit)
	}
	whole, fraction, point := strings.Cut(number, ".")
	if point && len(fraction) != digits || strings.Trim(whole+fraction, "0123456789") != "" || whole == "" {
		return nil, fmt.Errorf("amount %q: want digits with %d decimals", number, digits)
	}
	if !point {
		fraction = strings.Repeat("0", digits)
	}
	minor, err := strconv.ParseUint(whole+fraction, 10, 64)
	if err != nil || minor >= protocol.MaxMinor {
		return nil, fmt.Errorf("amount %q is too large", number)
	}
	return &protocol.Amount{Minor: minor, Currency: unit}, nil
}

// formatAmount writes what parseAmount reads; "" for none. A currency that is not
// known counts minor units, which nobody is shown: the client stops before.
func formatAmount(a *protocol.Amount) string {
	if a == nil {
		return ""
	}
	digits, _ := protocol.MinorDigits(a.Currency)
	number := fmt.Sprintf("%0*d", digits+1, a.Minor)
	if digits != 0 {
		number = number[:len(number)-digits] + "." + number[len(number)-digits:]
	}
	return number + " " + a.Currency
}
