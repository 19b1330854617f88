package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"time"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/internal/config"
)

// api speaks the admin API over the Unix socket.
type api struct{ client http.Client }

// requestTimeout bounds one request; the slowest waits for the token.
const requestTimeout = 30 * time.Second

func newAPI(address config.Address) *api {
	var d net.Dialer
	return &api{client: http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, address.Network(), address.Target())
		},
	}}}
}

func (a *api) get(ctx context.Context, path string, into any) error {
	return a.do(ctx, http.MethodGet, path, nil, into)
}

func (a *api) post(ctx context.Context, path string, body, into any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return a.do(ctx, http.MethodPost, path, bytes.NewReader(raw), into)
}

func (a *api) do(ctx context.Context, method, path string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://appliance"+admin.Prefix+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(req)
	if err != nil {
		return unanswered(err)
	}
	defer func() { _ = res.Body.Close() }() // it was read, or an error is returned
	if res.StatusCode != http.StatusOK {
		return problem(res)
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("reading the answer of the appliance: %w", err)
	}
	return nil
}

// unanswered is the error of a request that got no answer.
func unanswered(err error) error {
	return cli.Fail(cli.Unavailable, fmt.Errorf("asking the appliance: %w", errors.Unwrap(err)), "is countersignd running, and is --admin its socket?")
}

// problem turns a problem+json answer into an error with exit code and advice.
func problem(res *http.Response) error {
	var p admin.Problem
	if err := json.NewDecoder(res.Body).Decode(&p); err != nil || p.Type == "" {
		return fmt.Errorf("the appliance answered %s", res.Status)
	}
	code, hint, failed := cli.Failed, "", errors.New(p.Detail)
	switch p.Type {
	case admin.ProblemNotFound:
		code, hint = cli.NotFound, "the list of its noun shows the names: client, device, key, admin, change"
	case admin.ProblemKeyStep:
		hint = "countersignctl key list shows where each version stands; retire --early does not wait"
	case admin.ProblemUnsupported:
		code, hint = cli.Unavailable, "pkcs11-tool -O shows the attributes meanwhile"
	case admin.ProblemQuorum:
		failed = &quorumError{error: failed, change: p.Change, invited: p.Invited}
		code, hint = cli.Denied, "countersignctl change list shows what waits"
		if p.Change != nil {
			hint = "countersignctl change sign " + p.Change.ID + ", with --key or --pkcs11"
		}
	case admin.ProblemOver:
		code, hint = cli.Denied, "ask for the change again: a request is good once"
	case admin.ProblemSigner:
		code, hint = cli.Denied, "countersignctl admin list shows who may countersign"
	case admin.ProblemSignature:
		code, hint = cli.BadSignature, "sign the document that countersignctl change export prints, as CHANGE.md has it"
	case admin.ProblemUncovered:
		hint = "a copy is sealed only while a key is made: set backup.recipient, then rotate these keys; --partial leaves them out"
	case admin.ProblemExists:
		name := path.Base(path.Dir(res.Request.URL.Path)) // …/client/NAME/invite
		hint = name + " is enrolled or has an open code: --replace revokes it and makes a new one"
	case admin.ProblemInput:
		code = cli.Usage
	case admin.ProblemUnavailable:
		code, hint = cli.Unavailable, "countersignctl hsm status tells whether it is the HSM"
	case admin.ProblemPIN:
		code, hint = cli.Auth, "the token counts wrong PINs; run countersignctl hsm unlock again with the right one"
	case admin.ProblemLocked:
		code, hint = cli.Unavailable, "run countersignctl hsm unlock"
	}
	return cli.Fail(code, failed, hint)
}

// quorumError is of a change that waits for administrators.
type quorumError struct {
	error
	change  *admin.Change
	invited *admin.Invited
}
