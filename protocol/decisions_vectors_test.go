package protocol_test

import (
	"encoding/json"
	"time"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/cose"
	"countersign/protocol/receipt"
)

func init() {
	ops["decision"] = op(decisionVector)
	ops["tree"] = op(treeVector)
	ops["inclusion"] = op(inclusionVector)
	ops["sign_receipt"] = op(signReceiptVector)
	decoders["decision"] = decodeWith(receipt.Parse, receipt.Decision.Marshal)
}

// decisionIn is the device's knowledge in a vector.
type decisionIn struct {
	Decision hexBytes
	RootKey  hexBytes   `json:"root_key"`
	KeyCerts []hexBytes `json:"key_certs"`
	Now      uint64
	DeviceID hexBytes `json:"device_id"`
	Nonce    hexBytes
	Chals    []hexBytes
	Services []protocol.Service
	Amount   []json.RawMessage
	Floor    protocol.Level
	Elapsed  int64
	Strict   bool
}

func (in decisionIn) check() (c receipt.Check, err error) {
	c = receipt.Check{
		Root: protocol.PublicKey(in.RootKey), KeyCerts: plainBytes(in.KeyCerts), Now: in.Now, Device: protocol.DeviceID(in.DeviceID),
		Nonce: protocol.Nonce(in.Nonce), Services: in.Services, Floor: in.Floor, Elapsed: time.Duration(in.Elapsed) * time.Second,
		Strict: in.Strict,
	}
	for _, chal := range in.Chals {
		c.Challenges = append(c.Challenges, protocol.Challenge(chal))
	}
	if len(in.Amount) != 2 {
		return c, nil
	}
	c.Amount = &protocol.Amount{}
	if err := json.Unmarshal(in.Amount[0], &c.Amount.Minor); err != nil {
		return c, err
	}
	return c, json.Unmarshal(in.Amount[1], &c.Amount.Currency)
}

func decisionVector(in decisionIn) (any, error) {
	c, err := in.check()
	if err != nil {
		return nil, err
	}
	if _, err := c.Verify(in.Decision); err != nil {
		return nil, err
	}
	s, err := signedPayload(in.Decision)
	if err != nil {
		return nil, err
	}
	return valueOf(s, receipt.Parse, receipt.Decision.Marshal)
}

func treeVector(in struct{ Entries []hexBytes }) (any, error) {
	entries := plainBytes(in.Entries)
	paths := [][]hexBytes{}
	for _, path := range receipt.InclusionPaths(entries) {
		p := []hexBytes{}
		for _, h := range path {
			p = append(p, h[:])
		}
		paths = append(paths, p)
	}
	root := receipt.MerkleRoot(entries)
	return map[string]any{"root": hexBytes(root[:]), "paths": paths}, nil
}

func inclusionVector(in struct {
	Entry       hexBytes
	Size, Index uint64
	Path        []hexBytes
	Root        hexBytes
},
) (any, error) {
	proof := receipt.Inclusion{Size: in.Size, Index: in.Index}
	for _, p := range in.Path {
		proof.Path = append(proof.Path, receipt.Hash(p))
	}
	return map[string]any{}, receipt.VerifyInclusion(in.Entry, proof, receipt.Hash(in.Root))
}

func signReceiptVector(in struct{ Receipt, Key hexBytes }) (any, error) {
	document, err := receipt.VerifyDocument(in.Receipt, protocol.PublicKey(in.Key))
	return map[string]any{"document": hexBytes(document)}, err
}

// signedPayload returns the payload of a decision in either form.
func signedPayload(b []byte) ([]byte, error) {
	if len(b) != 0 && b[0] == 0x82 {
		var pair [][]byte
		if err := cbor.Unmarshal(b, &pair); err != nil {
			return nil, err
		}
		return pair[1], nil
	}
	s, _, err := cose.Parse(b, true)
	return s.Payload, err
}
