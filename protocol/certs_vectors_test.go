package protocol_test

import (
	"crypto/x509"
	"encoding/json"
	"strconv"
	"time"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/enrol"
	"countersign/protocol/internal/cose"
	"countersign/protocol/internal/strict"
	"countersign/protocol/trust"
)

func init() {
	ops["keycert"] = op(keyCertVector)
	ops["root_chain"] = op(rootChainVector)
	ops["client_cert"] = op(clientCertVector)
	ops["server_cert"] = op(serverCertVector)
	ops["mu"] = op(updateVector)
	ops["trust"] = op(trustVector)
	ops["enrol"] = op(enrolVector)
}

// payloadValue returns the "value" of a vector: the decoded payload of a COSE_Sign1.
func payloadValue[P any](b []byte, parse func([]byte) (P, error), write func(P) []byte) (any, error) {
	var s cose.Sign1
	if err := cbor.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	return valueOf(s.Payload, parse, write)
}

func valueOf[P any](payload []byte, parse func([]byte) (P, error), write func(P) []byte) (any, error) {
	value, err := decodeWith(parse, write)(payload)
	return map[string]any{"value": value}, err
}

func exactly[P any](b []byte) (p P, err error) {
	err = strict.Map(b, &p)
	return p, err
}

func marshalOf[P any](p P) []byte { return cbor.Marshal(p) }

func keyCertVector(in struct {
	Cert        hexBytes
	RootKey     hexBytes `json:"root_key"`
	Now         uint64
	Use         trust.Use
	StoredEpoch *uint64 `json:"stored_epoch"`
},
) (any, error) {
	k, err := trust.VerifyKeyCert(in.Cert, protocol.PublicKey(in.RootKey))
	if err != nil {
		return nil, err
	}
	if k.Use != in.Use {
		return nil, protocol.CodeCertificate.Errorf("use is %v", k.Use)
	}
	if err := k.AcceptableAt(in.Now, in.StoredEpoch); err != nil {
		return nil, err
	}
	return payloadValue(in.Cert, exactly[trust.KeyCert], marshalOf)
}

func rootChainVector(in struct {
	RootEpoch    uint64   `json:"root_epoch"`
	NextRootHash hexBytes `json:"next_root_hash"`
	Certs        []hexBytes
},
) (any, error) {
	last, err := trust.FollowRoots(in.RootEpoch, [32]byte(in.NextRootHash), plainBytes(in.Certs))
	id := last.Key.RootID()
	return map[string]any{
		"root_epoch": last.Number, "root_key": hexBytes(last.Key[:]), "next_root_hash": hexBytes(last.NextHash[:]),
		"root_id": hexBytes(id[:]),
	}, err
}

func clientCertVector(in struct {
	Cert hexBytes
	CA   hexBytes `json:"client_ca_key"`
	Now  uint64
},
) (any, error) {
	if _, err := trust.VerifyClientCert(in.Cert, protocol.PublicKey(in.CA), in.Now); err != nil {
		return nil, err
	}
	return payloadValue(in.Cert, exactly[trust.ClientCert], marshalOf)
}

func serverCertVector(in struct {
	Cert hexBytes
	CA   hexBytes `json:"ca_key"`
	Now  int64
},
) (any, error) {
	cert, err := x509.ParseCertificate(in.Cert)
	if err != nil {
		return nil, protocol.CodeFormat.Errorf("%v", err)
	}
	return map[string]any{}, trust.CheckServerCertificate(cert, protocol.PublicKey(in.CA), time.Unix(in.Now, 0))
}

func updateVector(in struct {
	RootKey      hexBytes `json:"root_key"`
	RootEpoch    uint64   `json:"root_epoch"`
	NextRootHash hexBytes `json:"next_root_hash"`
	Stored       map[string]uint64
	Now          uint64
	MU           hexBytes
},
) (any, error) {
	t := trust.State{Root: protocol.PublicKey(in.RootKey), RootNumber: in.RootEpoch, NextRootHash: [32]byte(in.NextRootHash), Keys: map[trust.Use]trust.Key{}}
	for use, epoch := range in.Stored {
		n, err := strconv.Atoi(use)
		if err != nil {
			return nil, err
		}
		t.Keys[trust.Use(n)] = trust.Key{KeyCert: trust.KeyCert{Use: trust.Use(n), Epoch: epoch}}
	}
	t, err := t.Update(in.MU, in.Now)
	return map[string]any{
		"root_key": hexBytes(t.Root[:]), "root_epoch": t.RootNumber, "next_root_hash": hexBytes(t.NextRootHash[:]),
		"stored": storedEpochs(t),
	}, err
}

// storedEpochs returns the adopted epoch of each use.
func storedEpochs(t trust.State) map[string]uint64 {
	stored := map[string]uint64{}
	for use, k := range t.Keys {
		stored[strconv.Itoa(int(use))] = k.Epoch
	}
	return stored
}

// vectorTime is a time at which the vectors' certificates are valid.
const vectorTime = 1795000000

func trustVector(in struct {
	ActivationCode string `json:"activation_code"`
	Trust          json.RawMessage
},
) (any, error) {
	code, err := enrol.ParseActivationCode(in.ActivationCode)
	if err != nil {
		return nil, err
	}
	doc, err := trust.ParseDocument(in.Trust)
	if err != nil {
		return nil, err
	}
	t, err := doc.Resolve(code.Root, vectorTime)
	return map[string]any{
		"root_key": hexBytes(t.Root[:]), "next_root_hash": hexBytes(t.NextRootHash[:]), "root_epoch": t.RootNumber,
		"root_hash": hexBytes(code.Root[:]),
	}, err
}

func enrolVector(in struct{ Request json.RawMessage }) (any, error) {
	r, err := enrol.ParseRequest(in.Request)
	if err != nil {
		return nil, err
	}
	id := r.ClientID()
	return map[string]any{
		"sig_structure": hexBytes(r.SigStructure()), "client_id": hexBytes(id[:]), "root_hash": hexBytes(r.ActivationCode.Root[:]),
	}, nil
}

func plainBytes(list []hexBytes) [][]byte {
	out := make([][]byte, len(list))
	for i, b := range list {
		out[i] = b
	}
	return out
}
