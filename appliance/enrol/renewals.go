package enrol

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"countersign/internal/bounded"
	"countersign/protocol"
)

// renewalsPerHour is how often one authority certifies one device in an hour. A device renews once in
// half the life of its certificate, and after a rotation of ca, which makes another authority.
const renewalsPerHour = 4

// renewals limits the certificates of a device. A restart forgets them: a count from the audit would have to read all
// of it.
type renewals struct {
	mu      sync.Mutex // held while an entry is read and written
	devices bounded.Map[renewed, []time.Time]
}

// renewed is a device, with the SHA-256 of the public key of its authority.
type renewed struct {
	device    protocol.DeviceID
	authority [sha256.Size]byte
}

func renewedBy(device protocol.DeviceID, authority *x509.Certificate) renewed {
	return renewed{device, sha256.Sum256(authority.RawSubjectPublicKeyInfo)}
}

// begin counts a renewal. It returns how long the device has to wait for another one, 0 if this one may
// proceed. A renewal in the future, because the clock was set back, counts as one of now.
func (r *renewals) begin(who renewed, now time.Time) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var recent []time.Time
	before, _ := r.devices.Get(who)
	for _, at := range before {
		if at.After(now) {
			at = now
		}
		if now.Sub(at) < time.Hour {
			recent = append(recent, at)
		}
	}
	if len(recent) >= renewalsPerHour {
		wait = recent[0].Add(time.Hour).Sub(now)
	} else {
		recent = append(recent, now)
	}
	r.devices.Put(who, recent)
	return wait
}

// undo takes back a renewal that failed.
func (r *renewals) undo(who renewed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if recent, _ := r.devices.Get(who); len(recent) > 0 {
		r.devices.Put(who, slices.Clone(recent[:len(recent)-1]))
	}
}
