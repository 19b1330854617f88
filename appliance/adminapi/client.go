package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// requestTimeout bounds one request; the slowest waits for the token.
const requestTimeout = 30 * time.Second

// maxProblem bounds an error answer, in bytes.
const maxProblem = 1 << 20

// Caller calls the admin API. It is safe for concurrent use.
type Caller struct{ client http.Client }

// NewCaller returns a caller of the admin API at the path of its Unix socket. The API has no other address: the
// credentials of the socket identify its callers.
func NewCaller(path string) *Caller {
	var d net.Dialer
	return &Caller{client: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}
}

// Error is an error answer of the appliance.
type Error struct {
	Problem
	Noun  string   // of the request's path
	Names []string // the wildcards of the request's path
}

func (e *Error) Error() string { return e.Detail }

// ErrUnanswered means that no answer arrived: no daemon listens, or it closed the connection.
var ErrUnanswered = errors.New("asking the appliance")

// Call sends a request and reads the answer. The names replace the wildcards of the route's path, in order. An error
// answer is an [*Error]; without an answer the error wraps [ErrUnanswered].
func (r Route[Req, Res]) Call(ctx context.Context, c *Caller, body Req, names ...string) (res Res, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := r.send(ctx, c, body, names)
	if err != nil {
		return res, err
	}
	defer func() { _ = answer.Body.Close() }() // it was read, or an error is returned
	err = json.NewDecoder(answer.Body).Decode(&res)
	if err == nil { // when the body ends, everything that the request changes is stored
		_, err = io.Copy(io.Discard, answer.Body)
	}
	if err != nil {
		err = fmt.Errorf("reading the answer of the appliance: %w", err)
	}
	return res, err
}

// CopyStore asks for a copy of the database, by [Routes].StoreBackup. It returns its description and its bytes, which
// the caller verifies against the description and closes. ctx bounds all of it.
func (c *Caller) CopyStore(
	ctx context.Context, route Route[Ask, []byte],
) (about StoreCopy, database io.ReadCloser, err error) {
	answer, err := route.send(ctx, c, Ask{}, nil)
	if err != nil {
		return about, nil, err
	}
	if err := json.Unmarshal([]byte(answer.Header.Get(HeaderCopy)), &about); err != nil {
		return about, nil, errors.Join(fmt.Errorf("reading the answer of the appliance: %w", err), answer.Body.Close())
	}
	return about, answer.Body, nil
}

// send returns an answer of status 200, whose body the caller closes.
func (r Route[Req, Res]) send(ctx context.Context, c *Caller, body Req, names []string) (*http.Response, error) {
	raw, err := encode(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url(names), bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := c.client.Do(req)
	var failed *url.Error
	switch {
	case errors.As(err, &failed):
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, failed.Err)
	case err != nil:
		return nil, err
	case answer.StatusCode == http.StatusOK:
		return answer, nil
	}
	defer func() { _ = answer.Body.Close() }() // it was read
	e := &Error{Names: names}
	e.Noun, _, _ = strings.Cut(r.path, "/")
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxProblem)).Decode(&e.Problem); err != nil || e.Type == "" {
		return nil, fmt.Errorf("the appliance answered %s", answer.Status)
	}
	return nil, e
}

func encode(body any) ([]byte, error) {
	switch body := body.(type) {
	case None:
		return nil, nil
	case []byte:
		return body, nil
	}
	return json.Marshal(body)
}

// url returns the route's URL with names in place of its wildcards.
func (r Route[Req, Res]) url(names []string) string {
	parts := strings.Split(r.path, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "{") && len(names) > 0 {
			parts[i], names = url.PathEscape(names[0]), names[1:]
		}
	}
	u := "http://appliance" + Prefix + strings.Join(parts, "/")
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	return u
}
