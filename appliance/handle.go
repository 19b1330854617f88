package appliance

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
	"countersign/protocol"
	"countersign/protocol/derive"
	"countersign/protocol/deviceapi"
	"countersign/protocol/message"
	"countersign/protocol/receipt"
)

// handle is what the appliance must remember between apply and countersign. It
// travels sealed through the device (PROTOCOL.md §3.2):
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
	Policy    uint64   // version of the policy that decided the level
	Reference string   // of the order, for the audit record
	First     *pending // of a second approval: what it approves
}

// answerLife is how long a countersignature is answered again, PROTOCOL.md §4;
// handles live as long.
const answerLife = 24 * time.Hour

const (
	hourSize  = 4
	nonceSize = 12
)

// handleKeys holds the AEAD of each hour that a handle may come from, under each
// version of the mac key. They are derived on the token and kept in memory.
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

// handleKey is the AEAD of an hour under a version of mac.
func (a *Appliance) handleKey(ctx context.Context, mac keyring.Key, hour uint32) (cipher.AEAD, error) {
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

// add keeps a key and forgets those of hours that no handle can come from.
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

func (a *Appliance) sealHandle(ctx context.Context, device protocol.DeviceID, h handle) ([]byte, error) {
	return a.seal(ctx, sealing{device: device, hour: hourOf(time.UnixMilli(h.Issued)), kind: kindSession}, h)
}

// openHandle opens a session's handle that this appliance, or a replica, sealed
// for this device in the last 24 hours and since the last restore. Any other is dead:
// code 8.
func (a *Appliance) openHandle(ctx context.Context, device protocol.DeviceID, sealed []byte) (h handle, err error) {
	return h, a.unseal(ctx, sealing{device: device, kind: kindSession}, sealed, &h)
}

// sealing is what a sealed value is bound to. Two kinds of handle travel; the kind
// is inside, so that one never opens as the other.
type sealing struct {
	device protocol.DeviceID
	hour   uint32
	kind   uint8
}

const (
	kindSession uint8 = iota + 1
	kindPending
)

func (a *Appliance) seal(ctx context.Context, to sealing, v any) ([]byte, error) {
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

func (a *Appliance) unseal(ctx context.Context, from sealing, sealed []byte, into any) error {
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
	if plain[0] != from.kind || cbor.Unmarshal(plain[1:], into) != nil {
		return fmt.Errorf("handle of another kind or release: %w", protocol.CodeExpired)
	}
	return nil
}

// openAny opens a handle under the version of mac that sealed it: the one in use, or an
// earlier one while its handles may be under way.
func (a *Appliance) openAny(ctx context.Context, from sealing, sealed []byte) ([]byte, error) {
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

// channel is the session as it stands after M2.
func (h handle) channel() message.Channel {
	return message.Channel{PRK: message.Secret(h.PRK), TH2: [32]byte(h.TH2)}
}

// pending names an approval that waits for a second approver, and holds what the
// second one is shown and the device needs in the end. It travels sealed as the
// next handle of a countersign answer, and inside the second session's handle.
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

func (a *Appliance) sealPending(ctx context.Context, c countersigned, d receipt.Decision) ([]byte, error) {
	return a.seal(ctx, sealing{device: c.device.ID, hour: hourOf(a.now()), kind: kindPending}, pending{
		Client: c.p1.Client, Serial: c.p1.Serial, Statement: c.statement, Slot: c.p3.Slot, Proof: c.p3.Proof,
		Signature: c.p3.Signature, Transaction: d.Transaction, Pairwise: d.Pairwise, Factors: d.Factors,
	})
}

// pendingOf opens the handle of a co-approval. With other services it is ignored,
// and none or a dead one is no error here: the phone is told 6.
func (a *Appliance) pendingOf(ctx context.Context, device store.Device, req deviceapi.ApplyRequest, p1 message.P1) (*pending, error) {
	if p1.Service != protocol.ServiceCoApproval || req.Handle == nil {
		return nil, nil
	}
	var first pending
	err := a.unseal(ctx, sealing{device: device.ID, kind: kindPending}, req.Handle, &first)
	if errors.Is(err, protocol.CodeExpired) {
		return nil, nil
	}
	return &first, err
}

// coChallenge repeats to the second approver what the first one signed.
func (a *Appliance) coChallenge(device store.Device, req deviceapi.ApplyRequest, p1 message.P1, first *pending) (message.P2, error) {
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
	if amount != nil && (signed.P2.Amount == nil || *amount != *signed.P2.Amount) || text != "" && text != signed.P2.Text {
		return message.P2{}, fmt.Errorf("what is ordered is not what was signed first: %w", protocol.CodePolicy)
	}
	hash := first.Statement.Hash()
	return message.P2{
		TTL: signed.P2.TTL, Level: signed.P2.Level, Factors: signed.P2.Factors,
		Device: device.ID.Handle(), DeviceName: signed.P2.DeviceName, Amount: signed.P2.Amount, Text: signed.P2.Text,
		FirstStatement: &hash, FirstService: &signed.P1.Service,
	}, nil
}
