package dev

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"countersign/hsm"
)

// softhsmModules are the paths at which distributions install SoftHSM.
var softhsmModules = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
}

// Labels of the tokens, and the suffix of the second token's PIN files.
const (
	tokenLabel   = "countersign-dev"
	secondLabel  = "countersign-dev-2"
	secondSuffix = "-second"
)

// initTokens creates one or two SoftHSM tokens in the directory, unless they exist, and sets SOFTHSM2_CONF of this
// process and its children. It returns the path of SoftHSM's module.
func (d *dir) initTokens(ctx context.Context, two bool) (module string, err error) {
	dir := d.Dir
	for _, path := range softhsmModules {
		if _, statErr := os.Stat(path); statErr == nil {
			module = path
			break
		}
	}
	if module == "" {
		return "", fmt.Errorf("SoftHSM is not installed (looked for %s): %w", strings.Join(softhsmModules, ", "), hsm.ErrUnavailable)
	}
	conf, tokens := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "token")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", tokens)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return "", err
	}
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "pin")); err != nil {
		// No token is complete: each PIN is written after its token.
		if err := errors.Join(os.RemoveAll(tokens), os.Mkdir(tokens, 0o700)); err != nil {
			return "", err
		}
		if err := d.initToken(ctx, module, tokenLabel, ""); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pin"+secondSuffix)); err == nil || !two {
		return module, nil
	}
	return module, d.initToken(ctx, module, secondLabel, secondSuffix)
}

// initToken has hsm-probe initialize a token. The PINs go through a pipe, where no other process sees them.
func (d *dir) initToken(ctx context.Context, module, label, suffix string) error {
	pin, soPIN := randomPIN(), randomPIN()
	cmd := exec.CommandContext(ctx, d.ProbeBinary, "init-token", "--module", module, "--label", label)
	cmd.Stdin = strings.NewReader(soPIN + "\n" + pin + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("hsm-probe init-token: %w: %s", err, out)
	}
	return errors.Join(
		os.WriteFile(d.path("so-pin"+suffix), []byte(soPIN+"\n"), 0o600),
		os.WriteFile(d.path("pin"+suffix), []byte(pin+"\n"), 0o600),
	)
}

func randomPIN() string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return base32.StdEncoding.EncodeToString(b[:])
}
