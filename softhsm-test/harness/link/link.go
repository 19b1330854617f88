// Package wire speaks the framing of a wire link, PROTOCOL.md §5, and nothing
// above it.
package link

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"countersign/protocol/message"
)

// answerLimit is how long an answer may take.
const answerLimit = 10 * time.Second

// Conn is one connection of a phone to a device.
type Conn struct{ net.Conn }

// Dial connects to a link as dev.json names it: tcp:HOST:PORT or unix:PATH.
func Dial(ctx context.Context, link string) (Conn, error) {
	network, address, ok := strings.Cut(link, ":")
	if !ok {
		return Conn{}, fmt.Errorf("link %q: want NETWORK:ADDRESS", link)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return Conn{}, fmt.Errorf("link %s: %w", link, err)
	}
	return Conn{conn}, nil
}

// Ask sends a message and waits for one answer.
func (c Conn) Ask(msg []byte) ([]byte, error) {
	if err := c.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return nil, err
	}
	if err := message.WriteFrame(c, msg); err != nil {
		return nil, err
	}
	return message.ReadFrame(c)
}

// Ask is a connection with one message and one answer.
func Ask(ctx context.Context, link string, msg []byte) ([]byte, error) {
	conn, err := Dial(ctx, link)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // the answer is there, or an error is returned
	return conn.Ask(msg)
}
