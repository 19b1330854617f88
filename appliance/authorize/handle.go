package authorize

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"countersign/appliance/keyring"
	"countersign/appliance/store"
	"countersign/internal/clock"
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// handle is the state that the appliance needs between apply and countersign. It travels sealed
// through the device (PROTOCOL.md §3.2):
//
//	hour uint32 | nonce[12] | AES-256-GCM(key of the hour and handle epoch, aad = device and hour, kind | CBOR)
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
	Policy    uint64   // version of the policy that set the level
	Reference string   // of the order, for the audit record
	First     *pending // for a second approval: the first one
	// Boot is when the handle was sealed, by the host's own count. Releases before this field
	// sealed handles without it.
	Boot clock.Boot
}

// parseHandle decodes a handle of this release, or of the one before.
func parseHandle(raw []byte) (h handle, err error) {
	if err = cbor.Unmarshal(raw, &h); err == nil {
		return h, nil
	}
	var fields []cbor.RawMessage
	if err := cbor.Unmarshal(raw, &fields); err != nil {
		return handle{}, err
	}
	unknown, err := cbor.Marshal(clock.Boot{})
	if err != nil {
		return handle{}, err
	}
	if raw, err = cbor.Marshal(append(fields, unknown)); err != nil {
		return handle{}, err
	}
	h = handle{}
	return h, cbor.Unmarshal(raw, &h)
}

// expired reports whether the time of a challenge is over. Its age is the greater of the ages by the
// clock and by the host's own count of time, so a clock that is set back while the host runs extends none.
func (h handle) expired(now time.Time, boot clock.Boot, ttl time.Duration) bool {
	age := now.Sub(time.UnixMilli(h.Issued))
	if passed, ok := boot.Since(h.Boot); ok && age >= 0 {
		age = max(age, passed)
	}
	return age < 0 || age > ttl
}

// answerLife is how long the appliance repeats an answer, PROTOCOL.md §4. Handles live as long.
const answerLife = 24 * time.Hour

const (
	hourSize  = 4
	nonceSize = 12
)

// handleKeys caches the AEAD of each hour and version of the mac key. The token derives the keys.
type handleKeys struct {
	mu   sync.Mutex
	aead map[handleKeyName]cipher.AEAD // guarded by mu
}

type handleKeyName struct {
	hour  uint32
	mac   uint64 // version
	epoch derive.HandleEpoch
}

func hourOf(t time.Time) uint32 { return uint32(t.Unix() / int64(time.Hour/time.Second)) }

// handleKey returns the AEAD of an hour under a version of mac.
func (a *Service) handleKey(ctx context.Context, mac keyring.Key, hour uint32) (cipher.AEAD, error) {
	name := handleKeyName{hour: hour, mac: mac.Version, epoch: a.keys.Settings().HandleEpoch}
	a.handles.mu.Lock()
	known := a.handles.aead[name]
	a.handles.mu.Unlock()
	if known != nil {
		return known, nil
	}
	key, err := a.keys.MAC(ctx, mac, derive.HandleKeyInput(hour, name.epoch))
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
	a.handles.add(name, aead)
	return aead, nil
}

// add stores a key and drops the keys of hours whose handles have expired.
func (h *handleKeys) add(name handleKeyName, aead cipher.AEAD) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aead == nil {
		h.aead = map[handleKeyName]cipher.AEAD{}
	}
	h.aead[name] = aead
	newest := name.hour
	for known := range h.aead {
		newest = max(newest, known.hour)
	}
	for known := range h.aead {
		if newest-known.hour > hoursKept {
			delete(h.aead, known)
		}
	}
}

const hoursKept = uint32(answerLife / time.Hour)

func (a *Service) sealHandle(ctx context.Context, device protocol.DeviceID, h handle) ([]byte, error) {
	h.Boot = a.boot()
	return a.seal(ctx, sealing{device: device, hour: hourOf(time.UnixMilli(h.Issued)), kind: kindSession}, h)
}

// openHandle opens a session's handle that this appliance, or a replica, sealed for this device
// in the last 24 hours and since the last restore. For any other it returns code 8.
func (a *Service) openHandle(ctx context.Context, device protocol.DeviceID, sealed []byte) (h handle, err error) {
	err = a.unseal(ctx, sealing{device: device, kind: kindSession}, sealed, func(raw []byte) (err error) {
		h, err = parseHandle(raw)
		return err
	})
	return h, err
}

// sealing is the context that a sealed value is bound to. There are two kinds of handle; the kind
// is encrypted, so that one never opens as the other.
type sealing struct {
	device protocol.DeviceID
	hour   uint32
	kind   uint8
}

const (
	kindSession uint8 = iota + 1
	kindPending
)

func (a *Service) seal(ctx context.Context, to sealing, v any) ([]byte, error) {
	mac, err := a.keys.Current(keyring.MAC, a.now())
	if err != nil {
		return nil, err
	}
	aead, err := a.handleKey(ctx, mac, to.hour)
	if err != nil {
		return nil, err
	}
	plain, err := cbor.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding a handle: %w", err)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, hourSize+nonceSize+1+len(plain)+aead.Overhead()), to.hour)
	out = out[:hourSize+nonceSize]
	_, _ = rand.Read(out[hourSize:]) // never fails, crypto/rand
	out = aead.Seal(out, out[hourSize:], append([]byte{to.kind}, plain...), derive.HandleAAD(to.device, to.hour))
	if len(out) > deviceapi.MaxHandle {
		return nil, fmt.Errorf("handle of %d bytes is longer than %d", len(out), deviceapi.MaxHandle)
	}
	return out, nil
}

func (a *Service) unseal(ctx context.Context, from sealing, sealed []byte, parse func([]byte) error) error {
	if len(sealed) <= hourSize+nonceSize || len(sealed) > deviceapi.MaxHandle {
		return fmt.Errorf("handle of %d bytes: %w", len(sealed), protocol.CodeExpired)
	}
	hour, current := binary.BigEndian.Uint32(sealed), hourOf(a.now())
	if hour > current || current-hour > hoursKept {
		return fmt.Errorf("handle of another day: %w", protocol.CodeExpired)
	}
	plain, err := a.openAny(ctx, sealing{device: from.device, hour: hour}, sealed)
	if err != nil {
		return err
	}
	if plain[0] != from.kind || parse(plain[1:]) != nil {
		return fmt.Errorf("handle of another kind or release: %w", protocol.CodeExpired)
	}
	return nil
}

// openAny opens a handle under the version of mac that sealed it: the one in use, or an earlier
// one whose handles may still be in transit.
func (a *Service) openAny(ctx context.Context, from sealing, sealed []byte) ([]byte, error) {
	versions, err := a.keys.MACKeys(a.now())
	if err != nil {
		return nil, err
	}
	for _, mac := range versions {
		aead, err := a.handleKey(ctx, mac, from.hour)
		if err != nil {
			return nil, err
		}
		plain, err := aead.Open(nil, sealed[hourSize:hourSize+nonceSize], sealed[hourSize+nonceSize:], derive.HandleAAD(from.device, from.hour))
		if err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("handle is not ours or not this device's: %w", protocol.CodeExpired)
}

// channel returns the state of the session after M2.
func (h handle) channel() message.Channel {
	return message.Channel{PRK: message.Secret(h.PRK), TH2: [32]byte(h.TH2)}
}

// pending is an approval that waits for a second approver. It holds what the second approver sees
// and what the device needs in the end. It travels sealed as the next handle of a countersign
// answer, and inside the second session's handle.
type pending struct {
	_           struct{} `cbor:",toarray"`
	Client      protocol.ClientID
	Serial      protocol.Serial
	Statement   message.Statement
	Slot        uint64
	Proof       []byte
	Signature   [protocol.SignatureSize]byte
	Transaction protocol.TransactionID
	Pairwise    protocol.PairwiseID
	Factors     protocol.Factors
}

func (a *Service) sealPending(ctx context.Context, c countersigned, d receipt.Decision) ([]byte, error) {
	return a.seal(ctx, sealing{device: c.device.ID, hour: hourOf(a.now()), kind: kindPending}, pending{
		Client: c.p1.Client, Serial: c.p1.Serial, Statement: c.statement, Slot: c.p3.Slot, Proof: c.p3.Proof,
		Signature: c.p3.Signature, Transaction: d.Transaction, Pairwise: d.Pairwise, Factors: d.Factors,
	})
}

// pendingOf opens the handle of a co-approval, and ignores it for other services. It returns nil
// for a missing or dead handle: the phone then gets code 6.
func (a *Service) pendingOf(ctx context.Context, device store.Device, req deviceapi.ApplyRequest, p1 message.P1) (*pending, error) {
	if p1.Service != protocol.ServiceCoApproval || req.Handle == nil {
		return nil, nil
	}
	var first pending
	err := a.unseal(ctx, sealing{device: device.ID, kind: kindPending}, req.Handle,
		func(raw []byte) error { return cbor.Unmarshal(raw, &first) })
	if errors.Is(err, protocol.CodeExpired) {
		return nil, nil
	}
	return &first, err
}

// coChallenge shows the second approver what the first one signed.
func (a *Service) coChallenge(device store.Device, req deviceapi.ApplyRequest, p1 message.P1, first *pending) (message.P2, error) {
	if first == nil {
		return message.P2{}, fmt.Errorf("no handle of a pending approval: %w", protocol.CodeService)
	}
	signed, err := message.ParseStatement(first.Statement)
	if err != nil {
		return message.P2{}, fmt.Errorf("first statement: %w", err)
	}
	if !slices.Contains(req.Order.Services, signed.P1.Service) {
		return message.P2{}, fmt.Errorf("service %d is not ordered: %w", signed.P1.Service, protocol.CodeService)
	}
	if p1.Level > signed.P2.Level {
		return message.P2{}, fmt.Errorf("level %d for a second approval at %d: %w", p1.Level, signed.P2.Level, protocol.CodeLevel)
	}
	amount, text, err := agree(p1.Proposal, req.Order)
	if err != nil {
		return message.P2{}, err
	}
	if amount != nil && (signed.P2.Amount == nil || *amount != *signed.P2.Amount) {
		return message.P2{}, fmt.Errorf("amount is not what was signed first: %w", protocol.CodeAmountDiffers)
	}
	if text != "" && text != signed.P2.Text {
		return message.P2{}, fmt.Errorf("text is not what was signed first: %w", protocol.CodeTextDiffers)
	}
	hash := first.Statement.Hash()
	return message.P2{
		TTL: signed.P2.TTL, Level: signed.P2.Level, Factors: signed.P2.Factors,
		Device: device.ID.Handle(), DeviceName: signed.P2.DeviceName, Amount: signed.P2.Amount, Text: signed.P2.Text,
		FirstStatement: &hash, FirstService: &signed.P1.Service,
	}, nil
}
