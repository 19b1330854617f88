package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"countersign/appliance"
	"countersign/internal/config"
	"countersign/protocol"
)

// attestation is what the command of uv.attest is told.
type attestation struct {
	Client    string          `json:"client"` // hex, 8 bytes
	UVKey     string          `json:"uv_key"` // hex, 33 bytes
	Statement protocol.Base64 `json:"attestation"`
}

// maxFormat bounds what the command may print, bytes.
const maxFormat = 64

// attestBy makes the appliance's verifier of attestations from a command; nil where
// there is none.
func attestBy(cfg config.UV) appliance.Attest {
	if len(cfg.Attest) == 0 {
		return nil
	}
	return func(ctx context.Context, a appliance.Attestation) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, cfg.Timeout.Duration)
		defer cancel()
		asked, err := json.Marshal(attestation{Client: a.Client.String(), UVKey: a.UVKey.String(), Statement: a.Statement})
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(ctx, cfg.Attest[0], cfg.Attest[1:]...) //nolint:gosec // the operator's own
		cmd.Stdin = bytes.NewReader(asked)
		cmd.WaitDelay = cfg.Timeout.Duration // for children that keep its output open
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("uv.attest: %w", err)
		}
		format := strings.TrimSpace(string(out))
		if format == "" || len(format) > maxFormat {
			return "", fmt.Errorf("uv.attest printed %d bytes: want the name of a format", len(out))
		}
		return format, nil
	}
}
