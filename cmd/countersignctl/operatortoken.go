package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"countersign/hsm"
	"countersign/hsm/pool"
	"countersign/hsm/uri"
	"countersign/internal/cli"
	"countersign/internal/config"
	"countersign/internal/fault"
	"countersign/protocol"
)

// tokenFlags select a key on an operator's token.
type tokenFlags struct{ uri, pinFile string }

func (f *tokenFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.uri, "pkcs11", "", "operator's key on a token, RFC 7512: pkcs11:token=LABEL;object=LABEL?module-path=FILE")
	cmd.Flags().StringVar(&f.pinFile, "pin-file", "", "file of the token's PIN, mode 0600 (default: asked on the terminal)")
}

// tokenURI holds the attributes of a PKCS#11 URI that select one key.
type tokenURI struct{ token, serial, object, id, module string }

// parseURI reads a PKCS#11 URI that names one key of one token.
func parseURI(s string) (u tokenURI, err error) {
	parsed, err := uri.Parse(s)
	if err != nil {
		return u, err
	}
	into := map[string]*string{"token": &u.token, "serial": &u.serial, "object": &u.object, "id": &u.id}
	for _, a := range parsed.Path() {
		where, known := into[a.Name]
		switch {
		case known:
			*where = a.Value
		case a.Name != "type" || a.Value != "private":
			// It may be what distinguishes two keys.
			return u, fmt.Errorf("PKCS#11 URI: %s=%s is not looked at here", a.Name, a.Value)
		}
	}
	u.module = config.DefaultAppliance().HSM.Module
	if path, ok := parsed.Get("module-path"); ok {
		u.module = path
	}
	if u.token == "" && u.serial == "" || u.object == "" && u.id == "" {
		return u, errors.New("PKCS#11 URI: want token or serial, and object or id")
	}
	return u, nil
}

// open logs in to the token in a new worker process. It tries the PIN once.
func (f tokenFlags) open(cmd *cobra.Command) (tokenURI, *pool.Pool, error) {
	u, err := parseURI(f.uri)
	if err != nil {
		return u, nil, fault.OperatorURI.Of(err)
	}
	binary, err := beside("hsm-worker")
	if err != nil {
		return u, nil, err
	}
	secret := config.Secret{Source: "prompt"}
	if f.pinFile != "" {
		secret = config.Secret{Source: "file", Path: f.pinFile}
	}
	pin, err := secret.Resolve(config.SecretSources{What: "PIN of token " + u.token + u.serial, Prompt: cli.TerminalOf(cmd).Secret})
	if err != nil {
		return u, nil, err
	}
	opened, err := pool.Open(cmd.Context(), pool.Config{
		Binary: binary, Module: u.module, TokenLabel: u.token, TokenSerial: u.serial,
		PIN: pin, Workers: 1, Sessions: 1,
	})
	switch {
	case errors.Is(err, hsm.ErrPIN):
		err = fault.OperatorPIN.Of(err)
	case err != nil:
		err = unopened(u, err)
	}
	return u, opened, err
}

// unopened adds the hint to the error of a token that did not open.
func unopened(u tokenURI, err error) error {
	if err = config.TokenError(u.module, err); errors.Is(err, config.ErrTokenDenied) {
		return fault.TokenDenied.Of(err)
	}
	return fault.OperatorToken.Of(err)
}

// use calls do with the one key that the URI selects.
func (f tokenFlags) use(cmd *cobra.Command, do func(context.Context, operatorKey) error) error {
	u, opened, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer opened.Close()
	found, err := u.find(cmd.Context(), opened)
	if err != nil {
		return err
	}
	key, err := onToken(opened, found)
	if err != nil {
		return err
	}
	return do(cmd.Context(), key)
}

// find returns the one key on the token that the URI selects, made by countersignctl or another
// program. Blanks at the end of a label do not count: some tools pad it.
func (u tokenURI) find(ctx context.Context, token *pool.Pool) (k hsm.Key, err error) {
	own, err := token.Keys(ctx)
	others, errOthers := token.Foreign(ctx)
	objects, errObjects := token.Objects(ctx)
	if err := errors.Join(err, errOthers, errObjects); err != nil {
		return k, fault.OperatorTokenKeys.Of(err)
	}
	ids := map[hsm.KeyID]string{}
	for _, o := range objects {
		ids[o.Key] = string(o.ID)
	}
	found, there := 0, []string{}
	for _, one := range append(own, others...) {
		if one.Usage != hsm.SignP256 {
			continue
		}
		there = append(there, fmt.Sprintf("%q (id=%s)", trimmed(one.Label), percent(ids[one.ID])))
		if u.fits(one, ids[one.ID]) {
			k, found = one, found+1
		}
	}
	if found == 1 {
		return k, nil
	}
	count := strconv.Itoa(found)
	if len(there) == 0 {
		return k, fault.OperatorNoKeys.With("count", count).Error()
	}
	return k, fault.OperatorKeyChoice.With("count", count, "keys", strings.Join(there, ", ")).Error()
}

// fits reports whether a URI selects a key, which has this CKA_ID on the token.
func (u tokenURI) fits(k hsm.Key, id string) bool {
	return (u.object == "" || trimmed(u.object) == trimmed(k.Label)) &&
		(u.id == "" || u.id == string(k.ID[:]) || u.id == id)
}

func trimmed(label string) string { return strings.TrimRight(label, " \x00") }

// percent writes bytes as a PKCS#11 URI has them, RFC 7512 §2.3.
func percent(id string) (out string) {
	for i := range len(id) {
		out += fmt.Sprintf("%%%02x", id[i])
	}
	return out
}

// make generates the key that the URI names. Its label must not exist.
func (f tokenFlags) make(cmd *cobra.Command) (key operatorKey, err error) {
	u, opened, err := f.open(cmd)
	if err != nil {
		return key, err
	}
	defer opened.Close()
	if u.object == "" || u.id != "" {
		return key, fault.NewKeyWithID.Error()
	}
	made, err := opened.Generate(cmd.Context(), hsm.KeySpec{Label: u.object, Usage: hsm.SignP256})
	if err != nil {
		return key, fault.MakeOperatorKey.Of(err)
	}
	return onToken(opened, made)
}

func onToken(opened *pool.Pool, k hsm.Key) (operatorKey, error) {
	point, err := k.ECDH()
	if err != nil {
		return operatorKey{}, err
	}
	public, err := protocol.CompressPoint(point.Bytes())
	return operatorKey{signer: tokenSigner{opened, k.ID}, public: public}, err
}

// tokenSigner is a key on the token; change.Sign verifies what it signs.
type tokenSigner struct {
	pool *pool.Pool
	id   hsm.KeyID
}

// SignDigest implements [protocol.DigestSigner].
func (s tokenSigner) SignDigest(ctx context.Context, digest []byte) ([]byte, error) {
	rs, err := s.pool.Sign(ctx, s.id, hsm.ES256, digest)
	return rs, fault.OperatorSigning.Of(err)
}
