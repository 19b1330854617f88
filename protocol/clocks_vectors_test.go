package protocol_test

import (
	"countersign/protocol"
	"countersign/protocol/trust"
)

func init() { ops["clock"] = op(clockVector) }

// clockVector runs a client whose clock is set before each step. A step may bring an MU, then an M2 under the kem epoch
// in use, then a verified decision. The result is what the client holds afterwards by the same clock.
func clockVector(in struct {
	RootKey      hexBytes `json:"root_key"`
	RootEpoch    uint64   `json:"root_epoch"`
	NextRootHash hexBytes `json:"next_root_hash"`
	Certs        []hexBytes
	Steps        []clockStep
},
) (any, error) {
	t := trust.State{Root: protocol.PublicKey(in.RootKey), RootNumber: in.RootEpoch, NextRootHash: [32]byte(in.NextRootHash)}
	t = t.WithKeyCerts(plainBytes(in.Certs), in.Steps[0].Clock)
	var after []map[string]any
	for _, s := range in.Steps {
		var out map[string]any
		var err error
		if t, out, err = s.run(t); err != nil {
			return nil, err
		}
		after = append(after, out)
	}
	return map[string]any{"steps": after}, nil
}

type clockStep struct {
	Clock    uint64
	MU       hexBytes
	M2Now    *uint64 `json:"m2_now"`
	Decision *struct {
		Epoch    uint64
		IssuedAt uint64 `json:"issued_at"`
	}
}

func (s clockStep) run(t trust.State) (trust.State, map[string]any, error) {
	t, now := t.At(s.Clock)
	out := map[string]any{}
	if s.MU != nil {
		var err error
		if t, err = t.Update(s.MU, now); err != nil {
			return t, nil, err
		}
	}
	if s.M2Now != nil {
		kem, _ := t.KEM()
		taken := kem.TakesM2At(now)
		if out["m2_taken"] = taken; taken {
			t = t.Show(trust.Shown{Use: trust.UseKEM, Epoch: kem.Epoch, Now: *s.M2Now})
		}
	}
	if s.Decision != nil {
		t = t.Show(trust.Shown{Use: trust.UseDecision, Epoch: s.Decision.Epoch, Now: s.Decision.IssuedAt})
	}
	t, now = t.At(s.Clock)
	kem, _ := t.KEM()
	out["stored"], out["time"], out["kem"] = storedEpochs(t), now, kem.Epoch
	return t, out, nil
}
