package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"countersign/protocol"
)

// EnrolConfig is what it takes to enrol.
type EnrolConfig struct {
	URL  string // of the appliance: https://host:port
	Code protocol.ActivationCode
}

// Enrol makes a signing key and enrols it at the appliance, PROTOCOL.md §5. The
// activation code is sent to nobody before the server's certificate chains to the
// root that the code names. After a crash, or an error other than a refusal, the
// same call again gets the same answer.
//
// Errors are [ErrEnrolled], [ServerError], or wrap a protocol.Code: CodeCertificate for
// an appliance that is not the code's, CodeServerUnreachable, CodeFormat.
func (c *Client) Enrol(ctx context.Context, cfg EnrolConfig) (Status, error) {
	if c.state.Enrolment != nil {
		return Status{}, ErrEnrolled
	}
	s, err := newServer(cfg.URL)
	if err != nil {
		return Status{}, err
	}
	defer s.close()
	trust, err := s.trust(ctx, cfg.Code.Root, c.now())
	if err != nil {
		return Status{}, err
	}
	req, resp, err := c.request(ctx, s, cfg.Code)
	if err != nil {
		return Status{}, err
	}
	if trust, _, err = resp.Check(req, trust, trust.Time(unix(c.now()))); err != nil {
		return Status{}, fmt.Errorf("the appliance's answer: %w", err)
	}
	err = c.save(func(next *state) {
		next.Enrolling, next.Trust = nil, &trust
		next.Enrolment = &enrolment{
			URL: cfg.URL, SigningKey: req.SigningKey[:], ClientCert: resp.ClientCert, Floors: resp.Floors, At: c.now().UTC(),
		}
	})
	if err != nil {
		return Status{}, err
	}
	return c.Status()
}

// request sends the request; where its client id is taken it makes another key,
// once.
func (c *Client) request(ctx context.Context, s *server, code protocol.ActivationCode) (req protocol.EnrolRequest, resp protocol.EnrolResponse, err error) {
	for range 2 {
		if req, err = c.enrolRequest(ctx, code); err != nil {
			return req, resp, err
		}
		resp, err = s.enrol(ctx, c.state.Enrolling.Body)
		var refused *ServerError
		if !errors.As(err, &refused) || refused.Status != http.StatusConflict {
			return req, resp, err
		}
		if err := c.forgetRequest(ctx); err != nil {
			return req, resp, err
		}
	}
	return req, resp, err
}

// enrolRequest gives the request that waits for its answer, if it is with this
// code, or makes one, with a key of its own. Both are durable when it returns.
func (c *Client) enrolRequest(ctx context.Context, code protocol.ActivationCode) (protocol.EnrolRequest, error) {
	if c.state.Enrolling != nil {
		req, err := protocol.ParseEnrolRequest(c.state.Enrolling.Body)
		if err == nil && req.ActivationCode == code {
			return req, nil
		}
		if err := errors.Join(err, c.forgetRequest(ctx)); err != nil {
			return req, err
		}
	}
	key, err := c.keys.Create(ctx)
	if err != nil {
		return protocol.EnrolRequest{}, err
	}
	req, err := protocol.SignEnrol(ctx, protocol.EnrolRequest{ActivationCode: code, SigningKey: key.Public()}, key, nil)
	if err != nil {
		return req, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return req, fmt.Errorf("encoding the request: %w", err)
	}
	return req, c.save(func(s *state) { s.Enrolling = &enrolling{Body: body} })
}

// forgetRequest drops a request that can get no answer any more, then its key.
func (c *Client) forgetRequest(ctx context.Context) error {
	req, err := protocol.ParseEnrolRequest(c.state.Enrolling.Body)
	if err != nil {
		return err
	}
	if err := c.save(func(s *state) { s.Enrolling = nil }); err != nil {
		return err
	}
	return c.keys.Delete(ctx, req.SigningKey)
}
