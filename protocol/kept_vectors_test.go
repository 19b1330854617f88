package protocol_test

import (
	"errors"

	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
)

func init() { ops["kept_receipt"] = op(keptReceiptVector) }

// keptReceiptVector verifies the decision in a receipt of a client that was enrolled with certs and then got MUs.
func keptReceiptVector(in struct {
	RootKey      hexBytes `json:"root_key"`
	RootEpoch    uint64   `json:"root_epoch"`
	NextRootHash hexBytes `json:"next_root_hash"`
	Certs        []hexBytes
	Clock        uint64
	Updates      []struct {
		Clock uint64
		MU    hexBytes
	}
	Decision hexBytes
	KeyCert  hexBytes `json:"key_cert"`
},
) (any, error) {
	t := trust.State{Root: protocol.PublicKey(in.RootKey), RootNumber: in.RootEpoch, NextRootHash: [32]byte(in.NextRootHash)}
	t = t.WithKeyCerts(plainBytes(in.Certs), in.Clock)
	for _, u := range in.Updates {
		var now uint64
		var err error
		t, now = t.At(u.Clock)
		if t, err = t.Update(u.MU, now); err != nil {
			return nil, err
		}
	}
	_, _, err := receipt.VerifyKept(t.ReceiptKeys(in.KeyCert), in.Decision)
	var given *receipt.GivenUpError
	switch {
	case err == nil:
		return map[string]any{"receipt": "verified"}, nil
	case errors.As(err, &given):
		return map[string]any{"receipt": "given up", "given_up_on": given.On}, nil
	}
	return map[string]any{"receipt": "unverified"}, nil
}
