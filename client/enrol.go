package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"countersign/client/internal/remote"
	"countersign/client/internal/secret"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/enrol"
	"countersign/protocol/password"
	"countersign/protocol/trust"
)

// EnrolConfig is what it takes to enrol.
type EnrolConfig struct {
	URL  string // of the appliance: https://host:port
	Code enrol.ActivationCode
	// Password to set; nil: none, and what needs one can only be refused. Whoever
	// made it erases it.
	Password Password
	// Params stretch the password; zero: [password.Default].
	Params password.Params
	// UV makes a second key, which signs after the user was verified.
	UV bool
}

// Enrol makes a signing key and enrols it at the appliance, PROTOCOL.md §5. The
// activation code is sent to nobody before the server's certificate chains to the
// root that the code names. After a crash, or an error other than a refusal, the
// same call again gets the same answer: the request that is [Client.Enrolling] is
// repeated, with the password and keys that it was made with.
//
// Errors are [ErrEnrolled], [ServerError], or wrap a protocol.Code: CodeCertificate for
// an appliance that is not the code's, or has no key for passwords,
// CodeServerUnreachable, CodeFormat.
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

// Enrolling tells whether a request with this activation code waits for its answer,
// so that [Client.Enrol] repeats it as it is, and whether it sets a password.
func (c *Client) Enrolling(code enrol.ActivationCode) (waits, withPassword bool) {
	if c.state.Enrolling == nil {
		return false, false
	}
	req, err := enrol.ParseRequest(c.state.Enrolling.Body)
	return err == nil && req.ActivationCode == code, req.Password != nil
}

// application is one enrolment under way.
type application struct {
	EnrolConfig
	server *remote.Server
	trust  trust.State
}

// request sends the request; where its client id is taken it makes another key,
// once. What the appliance finds wrong with the request is not sent again.
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

// enrolRequest gives the request that waits for its answer, if it is with this
// code, or makes one, with keys of its own. All of it is durable when it returns.
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

// setPassword puts the password's verifier into a request, wrapped; nil: there is no
// password.
func (a application) setPassword(req *enrol.Request) (*secret.Kept, error) {
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
	kept := secret.New(params)
	var err error
	req.Password, err = kept.Enrolment(derive.PasswordImport{
		Root: a.trust.Root.RootID(), Enrol: enrolKey.Key, SigningKey: req.SigningKey,
	}, a.Password)
	if err != nil {
		return nil, fmt.Errorf("setting the password: %w", err)
	}
	return &kept, nil
}

// forgetRequest drops a request that can get no answer any more, then its keys.
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
