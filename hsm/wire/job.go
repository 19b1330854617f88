package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"countersign/hsm"
)

// A child that was started for a job (hsm/sheet) reads one frame of JSON behind the
// configuration, says no hello, answers with the responses of a request with id 0,
// whose payload is JSON, and ends.

// WriteOrder sends what a job is told, as one frame of JSON behind the
// configuration.
func WriteOrder(w io.Writer, order any) error {
	b, err := json.Marshal(order)
	if err == nil && len(b) > maxFrame {
		err = ErrFrame
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		return fmt.Errorf("writing order: %w", err)
	}
	return nil
}

// ReadOrder reads what [WriteOrder] sent.
func ReadOrder(r io.Reader, into any) error {
	b, err := readFrame(r, Buffer())
	if err != nil {
		return fmt.Errorf("reading order: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("reading order: %v: %w", err, ErrFrame)
	}
	return nil
}

// WriteReport sends what a job came to, as the responses of a request with id 0:
// the JSON of v, or the error that failed it.
func WriteReport(w io.Writer, v any, failed error) error {
	p := Response{Err: failed}
	if failed == nil {
		var err error
		if p.Payload, err = json.Marshal(v); err != nil {
			return fmt.Errorf("writing report: %w", err)
		}
	}
	_, err := p.write(w, nil)
	return err
}

// ReadReport reads what [WriteReport] sent. An error the child reported wraps the
// sentinel of package hsm it had there; no or a malformed report is
// [hsm.ErrUnavailable].
func ReadReport(r io.Reader, into any) error {
	var whole []byte
	for buf := Buffer(); ; {
		p, err := ReadResponse(r, buf)
		if errors.Is(err, io.EOF) {
			err = errors.New("the process ended without one")
		}
		if err != nil {
			return fmt.Errorf("reading worker's report: %v: %w", err, hsm.ErrUnavailable)
		}
		if p.Err != nil {
			return p.Err
		}
		if whole = append(whole, p.Payload...); len(whole) > MaxPayload {
			return fmt.Errorf("worker's report of more than %d bytes: %w", MaxPayload, hsm.ErrUnavailable)
		}
		if !p.More {
			break
		}
	}
	if err := json.Unmarshal(whole, into); err != nil {
		return fmt.Errorf("reading worker's report: %v: %w", err, hsm.ErrUnavailable)
	}
	return nil
}
