package config

import (
	"fmt"
	"time"
)

// Duration is a time span written as a string with a unit, "2s" or "1m30s". A
// bare number is an error, because its unit would be unknown.
type Duration struct{ time.Duration }

// UnmarshalTOML reads the string form.
func (d *Duration) UnmarshalTOML(raw any) error {
	text, ok := raw.(string)
	if !ok {
		return fmt.Errorf("want a string with a unit, such as \"2s\", found %v", raw)
	}
	parsed, err := time.ParseDuration(text)
	if err != nil || text == "0" {
		return fmt.Errorf("want a number with a unit, such as \"2s\", found %q", text)
	}
	d.Duration = parsed
	return nil
}

// MarshalText writes the form that UnmarshalTOML reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
