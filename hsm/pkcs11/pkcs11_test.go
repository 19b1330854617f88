package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
)

// The module is initialized once per process and never finalized, so all tests share one
// token.
var (
	softHSM hsmtest.SoftHSM
	shared  *Token
)

func TestMain(m *testing.M) { os.Exit(run(m, os.Stderr)) }

func run(m *testing.M, stderr io.Writer) int {
	dir, err := os.MkdirTemp("", "pkcs11-test-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		softHSM, err = hsmtest.MakeSoftHSM(dir)
	}
	if err == nil {
		err = os.Setenv("SOFTHSM2_CONF", softHSM.Conf)
	}
	if err == nil {
		err = refusals()
	}
	if err == nil {
		shared, err = Open(config())
	}
	if err == nil { // a token that loses its last key counts as lost
		_, err = shared.Generate(context.Background(), hsm.KeySpec{Label: "bystander", Usage: hsm.MACKey})
	}
	if err != nil {
		_, _ = io.WriteString(stderr, err.Error()+"\n")
		return 1
	}
	return m.Run()
}

func config() Config {
	return Config{Module: softHSM.Module, TokenLabel: softHSM.Label + "  ", PIN: hsm.PIN(softHSM.PIN), Sessions: 4}
}

// refusals are ways in which Open fails. They come before the Open that succeeds, in the
// same process, which shows that they leave the module usable.
func refusals() error {
	for _, c := range []struct {
		change func(*Config)
		want   error
		text   string
	}{
		{func(c *Config) { c.Module = "/nonexistent.so" }, hsm.ErrUnavailable, "/nonexistent.so: cannot open shared object file"},
		{func(c *Config) { c.TokenLabel = "another" }, hsm.ErrUnavailable, `0 tokens have label "another"`},
		{func(c *Config) { c.TokenLabel = "another" }, hsm.ErrUnavailable, fmt.Sprintf("the module has %q (serial ", softHSM.Label)},
		{func(c *Config) { c.Module = "/usr/bin/env" }, hsm.ErrUnavailable, "/usr/bin/env: cannot dynamically load"},
		{func(c *Config) { c.Module = "libm.so.6" }, hsm.ErrUnavailable, "it has no function C_GetFunctionList"},
		{func(c *Config) { c.TokenSerial = "0000" }, hsm.ErrUnavailable, `serial "0000"`},
		{func(c *Config) { c.TokenLabel = "" }, hsm.ErrUnavailable, "0 tokens"},
		{func(c *Config) { c.PIN = hsm.PIN("wrong-canary") }, hsm.ErrPIN, "C_Login"},
	} {
		cfg := config()
		c.change(&cfg)
		_, err := Open(cfg)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "canary") {
			return errors.Join(errors.New("want "+c.text), err)
		}
		for _, b := range cfg.PIN {
			if b != 0 {
				return errors.New("the PIN was not erased")
			}
		}
	}
	return nil
}

func TestContract(t *testing.T) {
	hsmtest.Run(t, func(*testing.T) hsm.Token { return shared })
}

func TestNoticesEmptyOnSoftHSM(t *testing.T) {
	if n := shared.Notices(); len(n) != 0 {
		t.Errorf("notices %q", n)
	}
}
