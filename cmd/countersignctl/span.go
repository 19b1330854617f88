package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"countersign/internal/fault"
)

// span is a flag for a duration of whole seconds with a bound.
type span struct {
	time.Duration
	most time.Duration
}

// Set implements [pflag.Value].
func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return errors.New("want a duration such as 90m or 24h")
	case d > s.most:
		return fmt.Errorf("at most %s", s.longest())
	case d < time.Second:
		return errors.New("at least 1s")
	case d%time.Second != 0:
		return errors.New("want whole seconds")
	}
	s.Duration = d
	return nil
}

// String implements [pflag.Value].
func (s *span) String() string { return shortDuration(s.Duration) }

// Type implements [pflag.Value]. It lets GetDuration read the flag.
func (s *span) Type() string { return "duration" }

func (s *span) longest() string { return shortDuration(s.most) }

// shortDuration leaves out the zero minutes and seconds of [time.Duration.String].
func shortDuration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if cut, ok := strings.CutSuffix(text, zero[1:]); ok && strings.HasSuffix(text, zero) {
			text = cut
		}
	}
	return text
}

// flagError words the error of a flag as the user wrote it: "--ttl 9000h: at most 720h".
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		err = fmt.Errorf("--%s %s: %w", invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(invalid))
	}
	return fault.BadFlags.With("command", cmd.CommandPath()).Of(err)
}
