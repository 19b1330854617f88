package appliance

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/protocol"
)

// handle is what the appliance must remember between apply and countersign. It
// travels sealed through the device (PROTOCOL.md §3.2):
//
//	hour uint32 | nonce[12] | AES-256-GCM(key of the hour, aad = device and hour, CBOR)
type handle struct {
	_         struct{} `cbor:",toarray"`
	Issued    int64    // Unix milliseconds
	PRK       []byte   // 32 bytes
	TH2       []byte   // 32 bytes
	Root      protocol.RootID
	P1        []byte
	P2        []byte
	Challenge protocol.Challenge
	U         protocol.Nonce
	Policy    uint64 // version of the policy that decided the level
	Reference string // of the order, for the audit record
}

// answerLife is how long a countersignature is answered again, PROTOCOL.md §4;
// handles live as long.
const answerLife = 24 * time.Hour

const (
	hourSize  = 4
	nonceSize = 12
)

// handleKeys holds the AEAD of each hour that a handle may come from. The keys
// are derived on the token and kept in memory.
type handleKeys struct {
	mu   sync.Mutex
	aead map[uint32]cipher.AEAD // guarded by mu
}

func hourOf(t time.Time) uint32 { return uint32(t.Unix() / int64(time.Hour/time.Second)) }

// handleKey is the AEAD of an hour.
func (a *Appliance) handleKey(ctx context.Context, hour uint32) (cipher.AEAD, error) {
	a.handles.mu.Lock()
	known := a.handles.aead[hour]
	a.handles.mu.Unlock()
	if known != nil {
		return known, nil
	}
	key, err := a.keys.MAC(ctx, protocol.HandleKeyInput(hour))
	if err != nil {
		return nil, fmt.Errorf("deriving the handle key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	a.handles.add(hour, aead)
	return aead, nil
}

// add keeps a key and forgets those of hours that no handle can come from.
func (h *handleKeys) add(hour uint32, aead cipher.AEAD) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aead == nil {
		h.aead = map[uint32]cipher.AEAD{}
	}
	h.aead[hour] = aead
	newest := hour
	for known := range h.aead {
		newest = max(newest, known)
	}
	for known := range h.aead {
		if newest-known > hoursKept {
			delete(h.aead, known)
		}
	}
}

const hoursKept = uint32(answerLife / time.Hour)

func (a *Appliance) sealHandle(ctx context.Context, device protocol.DeviceID, h handle) ([]byte, error) {
	hour := hourOf(time.UnixMilli(h.Issued))
	aead, err := a.handleKey(ctx, hour)
	if err != nil {
		return nil, err
	}
	plain, err := cbor.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encoding a handle: %w", err)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, hourSize+nonceSize+len(plain)+aead.Overhead()), hour)
	out = out[:hourSize+nonceSize]
	_, _ = rand.Read(out[hourSize:]) // never fails, crypto/rand
	return aead.Seal(out, out[hourSize:], plain, protocol.HandleAAD(device, hour)), nil
}

// openHandle opens a handle that this appliance, or a replica, sealed for this
// device in the last 24 hours. Any other is dead: code 8.
func (a *Appliance) openHandle(ctx context.Context, device protocol.DeviceID, sealed []byte) (h handle, err error) {
	if len(sealed) <= hourSize+nonceSize || len(sealed) > protocol.MaxHandle {
		return h, fmt.Errorf("handle of %d bytes: %w", len(sealed), protocol.CodeExpired)
	}
	hour, current := binary.BigEndian.Uint32(sealed), hourOf(a.now())
	if hour > current || current-hour > hoursKept {
		return h, fmt.Errorf("handle of another day: %w", protocol.CodeExpired)
	}
	aead, err := a.handleKey(ctx, hour)
	if err != nil {
		return h, err
	}
	plain, err := aead.Open(nil, sealed[hourSize:hourSize+nonceSize], sealed[hourSize+nonceSize:], protocol.HandleAAD(device, hour))
	if err != nil {
		return h, fmt.Errorf("handle is not ours or not this device's: %w", protocol.CodeExpired)
	}
	if err := cbor.Unmarshal(plain, &h); err != nil {
		return h, fmt.Errorf("handle of another release: %w", protocol.CodeExpired)
	}
	return h, nil
}

// channel is the session as it stands after M2.
func (h handle) channel() protocol.Channel {
	return protocol.Channel{PRK: protocol.Secret(h.PRK), TH2: [32]byte(h.TH2)}
}
