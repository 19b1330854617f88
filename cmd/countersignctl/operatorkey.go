package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"countersign/appliance/change"
	"countersign/internal/durable"
	"countersign/internal/fault"
	"countersign/protocol"
)

// operatorKey is a key that countersigns, in a file or on a token.
type operatorKey struct {
	signer protocol.DigestSigner
	public protocol.PublicKey
}

// keyFlags name the place of an operator's key.
type keyFlags struct {
	file   string
	pkcs11 tokenFlags
}

func (k *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.file, "key", "", "operator's key, PKCS#8 PEM, mode 0600: for development")
	k.pkcs11.add(cmd)
}

// sign returns the COSE_Sign1 of a hash, or nil without a key.
func (k keyFlags) sign(cmd *cobra.Command, hash change.Hash) ([]byte, error) {
	var signature change.Signature
	with := func(ctx context.Context, key operatorKey) (err error) {
		signature, err = change.Sign(ctx, key.signer, key.public, hash)
		return err
	}
	switch {
	case k.file != "" && k.pkcs11.uri != "":
		return nil, fault.TwoOperatorKeys.Error()
	case k.file != "":
		key, err := readKey(k.file)
		if err == nil {
			err = with(cmd.Context(), key)
		}
		return signature.Marshal(), err
	case k.pkcs11.uri != "":
		err := k.pkcs11.use(cmd, with)
		return signature.Marshal(), err
	}
	return nil, nil
}

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 16 << 10

// readKey reads a P-256 key from PKCS#8 PEM (RFC 5958). Only its owner may be able to read the file.
func readKey(path string) (k operatorKey, err error) {
	f, err := os.Open(path)
	if err != nil {
		return k, fault.OperatorKeyUnread.Of(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return k, fault.OperatorKeyUnread.Of(err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return k, fault.OperatorKeyKind.With("path", path).Of(errors.New("not a regular file"))
	case mode.Perm()&0o077 != 0:
		return k, fault.OperatorKeyMode.With("path", path, "mode", fmt.Sprintf("%04o", mode.Perm())).Error()
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return k, fault.OperatorKeyUnread.Of(err)
	}
	private, err := parseKey(raw)
	if err != nil {
		return k, fault.OperatorKeyKind.With("path", path).Of(err)
	}
	k.signer = change.FileKey{PrivateKey: private}
	k.public, err = protocol.CompressKey(&private.PublicKey)
	return k, err
}

func parseKey(raw []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one PEM block, PRIVATE KEY")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, errors.New("want a key on P-256")
	}
	return private, nil
}

// writeKey generates a key and creates its file.
func writeKey(path string) (key protocol.PublicKey, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key, err
	}
	err = durable.Create(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return key, fault.WriteOperatorKey.Of(err)
	}
	return protocol.CompressKey(&private.PublicKey)
}

// readPublic returns a public key in hex, from a PEM file with a public or private key or from the given point.
func readPublic(file, point string) (string, error) {
	switch {
	case (file == "") == (point == ""):
		return "", fault.WhichPublicKey.Error()
	case point != "":
		return point, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fault.ReadPublicKey.Of(err)
	}
	public, err := parsePublic(raw)
	if err != nil {
		return "", fault.BadPublicKey.With("path", file).Of(err)
	}
	compressed, err := protocol.CompressKey(public)
	return hex.EncodeToString(compressed[:]), err
}

func parsePublic(raw []byte) (*ecdsa.PublicKey, error) {
	if private, err := parseKey(raw); err == nil {
		return &private.PublicKey, nil
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("no PEM of a key")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if public, ok := parsed.(*ecdsa.PublicKey); ok || err != nil {
		return public, err
	}
	return nil, errors.New("not a key on P-256")
}
