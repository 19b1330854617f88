package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"countersign/client/internal/kept"
	"countersign/client/internal/remote"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// EnrolConfig configures [Client.Enrol].
type EnrolConfig struct {
	URL  string // of the appliance: https://host:port
	Code enrol.ActivationCode
	// Password to set; nil: none, and the user can only refuse challenges that need one. The caller
	// erases it.
	Password Password
	// Params stretch the password; zero: [password.Default].
	Params password.Params
	// UV creates a second key, which signs after the user was verified.
	UV bool
}

// Enrol creates a signing key and enrols it at the appliance, PROTOCOL.md §5. It sends the
// activation code only after the server's certificate chains to the root in the code. After a crash,
// or an error other than a refusal, the same call gets the same answer: it repeats the
// [Client.Enrolling] request with its password and keys.
//
// Errors are [ErrEnrolled], [ServerError], [*password.ShortError], or wrap a protocol.Code: CodeCertificate if the
// appliance is not the one in the code or has no key for passwords, CodeServerUnreachable, CodeFormat.
func (c *Client) Enrol(ctx context.Context, cfg EnrolConfig) (Status, error) {
	if c.state.Enrolment != nil {
		return Status{}, ErrEnrolled
	}
	s, err := remote.New(cfg.URL)
	if err != nil {
		return Status{}, err
	}
	defer s.Close()
	pinned, err := s.Trust(ctx, cfg.Code.Root, c.now())
	if err != nil {
		return Status{}, err
	}
	a := application{EnrolConfig: cfg, server: s, trust: pinned}
	req, resp, err := c.request(ctx, a)
	if err != nil {
		return Status{}, err
	}
	if pinned, _, err = resp.Check(req, pinned, pinned.Time(unix(c.now()))); err != nil {
		return Status{}, fmt.Errorf("the appliance's answer: %w", err)
	}
	made := &enrolment{
		URL: cfg.URL, SigningKey: req.SigningKey[:], ClientCert: resp.ClientCert, Floors: resp.Floors, At: c.now().UTC(),
		Password: c.state.Enrolling.Password,
	}
	if req.UVKey != nil {
		made.UVKey = req.UVKey[:]
	}
	if err := c.save(func(next *state) { next.Enrolling, next.Trust, next.Enrolment = nil, &pinned, made }); err != nil {
		return Status{}, err
	}
	return c.Status()
}

// Enrolling reports whether a request with this activation code waits for its answer, so that
// [Client.Enrol] repeats it, and whether it sets a password.
func (c *Client) Enrolling(code enrol.ActivationCode) (waits, withPassword bool) {
	if c.state.Enrolling == nil {
		return false, false
	}
	req, err := enrol.ParseRequest(c.state.Enrolling.Body)
	return err == nil && req.ActivationCode == code, req.Password != nil
}

// application is an enrolment in progress.
type application struct {
	EnrolConfig
	server *remote.Server
	trust  trust.State
}

// request sends the request. If its client id is taken it tries once more with a new key. It does
// not repeat a request that the appliance rejects as invalid.
func (c *Client) request(ctx context.Context, a application) (req enrol.Request, resp enrol.Response, err error) {
	for range 2 {
		if req, err = c.enrolRequest(ctx, a); err != nil {
			return req, resp, err
		}
		resp, err = a.server.Enrol(ctx, c.state.Enrolling.Body)
		var refused *ServerError
		if !errors.As(err, &refused) || refused.Status != http.StatusConflict && refused.Status != http.StatusBadRequest {
			return req, resp, err
		}
		if err := c.forgetRequest(ctx); err != nil {
			return req, resp, err
		}
		if refused.Status == http.StatusBadRequest {
			return req, resp, err
		}
	}
	return req, resp, err
}

// enrolRequest returns the pending request if it has this code, or stores a new one with new keys.
func (c *Client) enrolRequest(ctx context.Context, a application) (enrol.Request, error) {
	if c.state.Enrolling != nil {
		req, err := enrol.ParseRequest(c.state.Enrolling.Body)
		if err == nil && req.ActivationCode == a.Code {
			return req, nil
		}
		if err := errors.Join(err, c.forgetRequest(ctx)); err != nil {
			return req, err
		}
	}
	if a.Password != nil {
		if err := password.CheckLength(a.Password, a.server.PasswordLength); err != nil {
			return enrol.Request{}, err
		}
	}
	key, err := c.keys.Create(ctx)
	if err != nil {
		return enrol.Request{}, err
	}
	req := enrol.Request{ActivationCode: a.Code, SigningKey: key.Public()}
	var uv Key
	if a.UV {
		if uv, err = c.keys.Create(ctx); err != nil {
			return req, err
		}
		public := uv.Public()
		req.UVKey = &public
	}
	kept, err := a.setPassword(&req)
	if err != nil {
		return req, err
	}
	if req, err = enrol.Sign(ctx, req, key, uv); err != nil {
		return req, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return req, fmt.Errorf("encoding the request: %w", err)
	}
	return req, c.save(func(s *state) { s.Enrolling = &enrolling{Body: body, Password: kept} })
}

// setPassword puts the password's wrapped verifier into a request. It returns nil without a
// password.
func (a application) setPassword(req *enrol.Request) (*kept.Password, error) {
	if a.Password == nil {
		return nil, nil
	}
	enrolKey, ok := a.trust.Key(trust.UseEnrol)
	if !ok {
		return nil, fmt.Errorf("the root certifies no key for passwords: %w", protocol.CodeCertificate)
	}
	params := a.Params
	if params == (password.Params{}) {
		params = password.Default
	}
	kept := kept.New(params)
	var err error
	req.Password, err = kept.Enrolment(derive.PasswordImport{
		Root: a.trust.Root.RootID(), Enrol: enrolKey.Key, SigningKey: req.SigningKey,
	}, a.Password)
	if err != nil {
		return nil, fmt.Errorf("setting the password: %w", err)
	}
	return &kept, nil
}

// forgetRequest drops a request that cannot be answered any more, then its keys.
func (c *Client) forgetRequest(ctx context.Context) error {
	req, err := enrol.ParseRequest(c.state.Enrolling.Body)
	if err != nil {
		return err
	}
	if err := c.save(func(s *state) { s.Enrolling = nil }); err != nil {
		return err
	}
	if req.UVKey != nil {
		if err := c.keys.Delete(ctx, *req.UVKey); err != nil {
			return err
		}
	}
	return c.keys.Delete(ctx, req.SigningKey)
}
