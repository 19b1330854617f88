package clienttest

import (
	"net"
	"strings"
	"testing"

	"countersign/protocol/message"
)

// Link is the client's end of a link.
type Link struct{ conn net.Conn }

// Dial connects to an address of [Appliance.Listen], until the test ends.
func Dial(t testing.TB, address string) Link {
	t.Helper()
	network, target, _ := strings.Cut(address, ":")
	conn, err := net.Dial(network, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return Link{conn}
}

// Send writes one message.
func (l Link) Send(msg []byte) error { return message.WriteFrame(l.conn, msg) }

// Receive reads one message.
func (l Link) Receive() ([]byte, error) { return message.ReadFrame(l.conn) }
