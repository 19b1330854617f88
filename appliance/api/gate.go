package api

import "sync"

// How many requests are processed at once. Further ones are answered busy (429), so that a flood costs the memory of
// these only. Requests without a device certificate have their own limit. Requests that begin an authorization have
// one too, so that they cannot keep out those that end one. One device gets a share ([Limits]), so that it cannot keep
// the others out. A request does not count while its bytes are read or written, or while a refusal waits for its time.
const (
	applyInFlight   = 128
	deviceInFlight  = 256
	unknownInFlight = 16
)

// Bounds that a request can meet: values of a label.
const (
	boundAll      = "all"      // of all devices, or of all strangers
	boundDevice   = "device"   // of its device
	boundStranger = "stranger" // of its connection without a certificate
)

// gate limits how many requests are processed at once, and how many of them for one device.
type gate struct {
	most, share int

	mu     sync.Mutex     // guards the following fields
	inside int            // requests
	of     map[string]int // requests of each device that has some
}

func newGate(most, share int) *gate { return &gate{most: most, share: share, of: map[string]int{}} }

// enter returns "", or the bound that a request of this device meets. The device of strangers is "".
func (g *gate) enter(device string) (bound string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.inside >= g.most:
		return boundAll
	case g.of[device] >= g.share:
		return boundDevice
	}
	g.inside++
	g.of[device]++
	return ""
}

func (g *gate) leave(device string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.of[device]--; g.of[device] == 0 {
		delete(g.of, device)
	}
}
