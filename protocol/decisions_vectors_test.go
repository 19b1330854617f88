package protocol

import (
	"encoding/json"
	"time"
)

func init() {
	ops["decision"] = op(decisionVector)
	ops["tree"] = op(treeVector)
	ops["inclusion"] = op(inclusionVector)
	ops["sign_receipt"] = op(signReceiptVector)
	decoders["decision"] = decodeWith(ParseDecision, Decision.Marshal)
}

// decisionIn is what a vector says that D knows.
type decisionIn struct {
	Decision hexBytes
	RootKey  hexBytes   `json:"root_key"`
	KeyCerts []hexBytes `json:"key_certs"`
	Now      uint64
	DeviceID hexBytes `json:"device_id"`
	Nonce    hexBytes
	Chals    []hexBytes
	Services []Service
	Amount   []json.RawMessage
	Floor    Level
	Elapsed  int64
	Strict   bool
}

func (in decisionIn) check() (c DecisionCheck, err error) {
	c = DecisionCheck{
		Root: PublicKey(in.RootKey), KeyCerts: plainBytes(in.KeyCerts), Now: in.Now, Device: DeviceID(in.DeviceID),
		Nonce: Nonce(in.Nonce), Services: in.Services, Floor: in.Floor, Elapsed: time.Duration(in.Elapsed) * time.Second,
		Strict: in.Strict,
	}
	for _, chal := range in.Chals {
		c.Challenges = append(c.Challenges, Challenge(chal))
	}
	if len(in.Amount) != 2 {
		return c, nil
	}
	c.Amount = &Amount{}
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
	s, err := parseSigned(in.Decision)
	if err != nil {
		return nil, err
	}
	return valueOf(s.payload, ParseDecision, Decision.Marshal)
}

func treeVector(in struct{ Entries []hexBytes }) (any, error) {
	entries := plainBytes(in.Entries)
	paths := [][]hexBytes{}
	for _, path := range InclusionPaths(entries) {
		p := []hexBytes{}
		for _, h := range path {
			p = append(p, h[:])
		}
		paths = append(paths, p)
	}
	root := MerkleRoot(entries)
	return map[string]any{"root": hexBytes(root[:]), "paths": paths}, nil
}

func inclusionVector(in struct {
	Entry       hexBytes
	Size, Index uint64
	Path        []hexBytes
	Root        hexBytes
},
) (any, error) {
	proof := Inclusion{Size: in.Size, Index: in.Index}
	for _, p := range in.Path {
		proof.Path = append(proof.Path, Hash(p))
	}
	return map[string]any{}, VerifyInclusion(in.Entry, proof, Hash(in.Root))
}

func signReceiptVector(in struct{ Receipt, Key hexBytes }) (any, error) {
	document, err := VerifySignReceipt(in.Receipt, PublicKey(in.Key))
	return map[string]any{"document": hexBytes(document)}, err
}
