package protocol_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	lenient "github.com/fxamacker/cbor/v2"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/derive"
	"countersign/protocol/internal/domain"
	"countersign/protocol/message"
)

func init() {
	ops["hpke"] = op(hpkeVector)
	ops["m1"] = op(m1Vector)
	ops["session"] = op(sessionVector)
	ops["show"] = op(showVector)
	ops["countersign"] = op(countersignVector)
	ops["derive"] = op(deriveVector)
	ops["performed"] = op(performedVector)
	ops["me"] = op(linkErrorVector)
	decoders["p1"] = decodeWith(message.ParseP1, message.P1.Marshal)
	decoders["p2"] = decodeWith(message.ParseP2, message.P2.Marshal)
	decoders["p3"] = decodeWith(message.ParseP3, message.P3.Marshal)
	decoders["p4"] = decodeWith(message.ParseP4, message.P4.Marshal)
}

// op decodes a vector's in before it runs.
func op[In any](run func(In) (any, error)) func(json.RawMessage) (any, error) {
	return func(in json.RawMessage) (any, error) {
		var v In
		d := json.NewDecoder(bytes.NewReader(in))
		d.DisallowUnknownFields()
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		return run(v)
	}
}

// decodeWith returns the map that the parsed value marshals to, with the ignored keys of the input,
// which Marshal leaves out.
func decodeWith[P any](parse func([]byte) (P, error), write func(P) []byte) func([]byte) (any, error) {
	return func(b []byte) (any, error) {
		p, err := parse(b)
		if err != nil {
			return nil, err
		}
		read, ignored := map[int64]any{}, map[int64]any{}
		if err := errors.Join(lenient.Unmarshal(write(p), &read), lenient.Unmarshal(b, &ignored)); err != nil {
			return nil, err
		}
		for k, v := range ignored {
			if k >= 64 {
				read[k] = v
			}
		}
		return jsonValue(read), nil
	}
}

// jsonValue turns decoded CBOR into the JSON of the vectors.
func jsonValue(v any) any {
	switch v := v.(type) {
	case []byte:
		return hexBytes(v)
	case []any:
		for i := range v {
			v[i] = jsonValue(v[i])
		}
	case map[int64]any:
		m := map[string]any{}
		for k, e := range v {
			m[strconv.FormatInt(k, 10)] = jsonValue(e)
		}
		return m
	case map[any]any:
		m := map[string]any{}
		for k, e := range v {
			m[fmt.Sprint(k)] = jsonValue(e)
		}
		return m
	}
	return v
}

type hpkeIn struct {
	SkR     hexBytes `json:"sk_r"`
	SkE     hexBytes `json:"sk_e"`
	RootKey hexBytes `json:"root_key"`
	M1      hexBytes `json:"m1"`
}

// hpkeVector opens M1 with the code under test, and recreates it from the sender's ephemeral key
// with an independent key schedule (RFC 9180 §4.1 and §5.1).
func hpkeVector(in hpkeIn) (any, error) {
	root, err := protocol.ParsePublicKey(in.RootKey)
	if err != nil {
		return nil, err
	}
	m1, err := message.ParseM1(in.M1)
	if err != nil {
		return nil, err
	}
	p1, es, err := m1.Open(kemKey(m1.Suite, in.SkR), root.RootID())
	if err != nil {
		return nil, err
	}
	s := hpkeSchedule(m1.Suite, [2][]byte{in.SkE, in.SkR}, hpkeInfo(root.RootID()))
	block := must(aes.NewCipher(s["key"]))
	sealed := must(cipher.NewGCM(block)).Seal(nil, s["base_nonce"], p1, in.M1[:2])
	again := append(append(bytes.Clone(in.M1[:2]), pointOf(s["enc"])...), sealed...)
	if !bytes.Equal(again, in.M1) {
		return nil, fmt.Errorf("M1 made again is %x", again)
	}
	s["p1"], s["es"] = p1, es[:]
	return s, nil
}

func pointOf(uncompressed []byte) []byte {
	p := must(protocol.CompressPoint(uncompressed))
	return p[:]
}

func kemKey(suite uint8, scalar []byte) message.KEM {
	return message.NewKEM(suite, must(ecdh.P256().NewPrivateKey(scalar)))
}

// hpkeSchedule takes the scalars of the sender's ephemeral key and of the recipient.
func hpkeSchedule(number uint8, scalars [2][]byte, info []byte) map[string]hexBytes {
	ephemeral := must(ecdh.P256().NewPrivateKey(scalars[0]))
	recipient := must(ecdh.P256().NewPrivateKey(scalars[1])).PublicKey()
	enc, pkR := ephemeral.PublicKey().Bytes(), recipient.Bytes()
	dh := must(ephemeral.ECDH(recipient))

	kem := []byte("KEM\x00\x10")
	eaePRK := labeledExtract(kem, nil, "eae_prk", dh)
	shared := labeledExpand(kem, eaePRK, "shared_secret", append(bytes.Clone(enc), pkR...), 32)

	var kemKey []byte
	suite := []byte("HPKE\x00\x10\x00\x01\x00\x01")
	if number == message.Suite2 {
		k := sha256.Sum256(concat(dh, []byte{0, 0, 0, 1}))
		mac := hmac.New(sha256.New, k[:])
		mac.Write(concat([]byte("OA1 kem v2"), enc, pkR))
		kemKey, shared, suite = k[:], mac.Sum(nil), []byte("HPKE\xff\x02\x00\x01\x00\x01")
	}
	context := append([]byte{0}, labeledExtract(suite, nil, "psk_id_hash", nil)...)
	context = append(context, labeledExtract(suite, nil, "info_hash", info)...)
	secret := labeledExtract(suite, shared, "secret", nil)
	return map[string]hexBytes{
		"pk_r": pkR, "enc": enc, "info": info, "kem_key": kemKey, "shared_secret": shared,
		"key":             labeledExpand(suite, secret, "key", context, 16),
		"base_nonce":      labeledExpand(suite, secret, "base_nonce", context, 12),
		"exporter_secret": labeledExpand(suite, secret, "exp", context, 32),
	}
}

func labeledExtract(suite, salt []byte, label string, ikm []byte) []byte {
	return must(hkdf.Extract(sha256.New, concat([]byte("HPKE-v1"), suite, []byte(label), ikm), salt))
}

func labeledExpand(suite, prk []byte, label string, info []byte, size int) []byte {
	length := binary.BigEndian.AppendUint16(nil, uint16(size))
	labeled := concat(length, []byte("HPKE-v1"), suite, []byte(label), info)
	return must(hkdf.Expand(sha256.New, prk, string(labeled), size))
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

type m1In struct {
	RootKey hexBytes            `json:"root_key"`
	Kem     map[string]hexBytes `json:"kem"`
	Suite   uint8               `json:"suite"` // of the KeyCerts; 0: 1
	M1      hexBytes            `json:"m1"`
}

func m1Vector(in m1In) (any, error) {
	root, err := protocol.ParsePublicKey(in.RootKey)
	if err != nil {
		return nil, err
	}
	m1, err := message.ParseM1(in.M1)
	if err != nil {
		return nil, err
	}
	for epoch, scalar := range in.Kem {
		if n, err := strconv.ParseUint(epoch, 10, 64); err != nil || uint8(n%64) != m1.Epoch {
			continue
		}
		p1, es, err := m1.Open(kemKey(max(in.Suite, message.Suite1), scalar), root.RootID())
		if err != nil {
			return nil, err
		}
		_, err = message.ParseP1(p1)
		return map[string]hexBytes{"p1": p1, "es": es[:]}, err
	}
	return nil, protocol.CodeStaleKey
}

type sessionIn struct {
	RootKey    hexBytes `json:"root_key"`
	SkR        hexBytes `json:"sk_r"`
	ClientSK   hexBytes `json:"client_sk"`
	SigningKey hexBytes `json:"signing_key"`
	UVKey      hexBytes `json:"uv_key"`
	KPw        hexBytes `json:"k_pw"`
	Nonce      hexBytes `json:"nonce"`
	U          hexBytes `json:"u"`
	M1         hexBytes `json:"m1"`
	M2         hexBytes `json:"m2"`
	M3         hexBytes `json:"m3"`
	M4         hexBytes `json:"m4"`
}

// sessionVector runs the four passes as client and appliance together: first the comparisons, then
// everything that may be a format error, then signature and proof.
func sessionVector(in sessionIn) (any, error) {
	root, err := protocol.ParsePublicKey(in.RootKey)
	if err != nil {
		return nil, err
	}
	out := map[string]hexBytes{}
	c, chal, err := in.channel(root.RootID(), out)
	if err != nil {
		return nil, err
	}
	p2, err := c.OpenM2(in.M2)
	if err != nil {
		return nil, err
	}
	if _, err := message.ParseP2(p2); err != nil {
		return nil, err
	}
	stmt := message.NewStatement(root.RootID(), out["p1"], chal, p2)
	attempt, rawP3, err := c.OpenM3(in.M3)
	if err != nil {
		return nil, err
	}
	p3, err := message.ParseP3(rawP3)
	if err != nil {
		return nil, err
	}
	p4, err := c.OpenM4(in.M3, in.M4)
	if err != nil {
		return nil, err
	}
	if _, err := message.ParseP4(p4); err != nil {
		return nil, err
	}
	if err := in.verify(stmt, p3); err != nil {
		return nil, err
	}
	out["p2"], out["p3"], out["p4"], out["stmt"] = p2, rawP3, p4, hexBytes(stmt)
	out["payload"], out["sig_structure"] = payloadOf(stmt, p3.Approval()), sigStructureOf(stmt, p3.Approval())
	return out, in.keys(c, attempt, out)
}

func (in sessionIn) channel(root protocol.RootID, out map[string]hexBytes) (c message.Channel, chal protocol.Challenge, err error) {
	m1, err := message.ParseM1(in.M1)
	if err != nil {
		return c, chal, err
	}
	p1, es, err := m1.Open(kemKey(message.Suite1, in.SkR), root)
	if err != nil {
		return c, chal, err
	}
	if _, err := message.ParseP1(p1); err != nil {
		return c, chal, err
	}
	if chal, err = message.ChallengeOf(in.M2); err != nil {
		return c, chal, err
	}
	if chal != protocol.NewChallenge(protocol.Nonce(in.Nonce), protocol.Nonce(in.U)) {
		return c, chal, protocol.CodeReplayed
	}
	out["p1"], out["es"], out["chal"] = p1, es[:], chal[:]
	return message.NewChannel(es, in.M1, chal), chal, nil
}

func (in sessionIn) verify(stmt message.Statement, p3 message.P3) error {
	key := in.SigningKey
	if p3.Slot == protocol.SlotUV {
		key = in.UVKey
	}
	if err := message.VerifyCountersign(protocol.PublicKey(key), stmt, p3.Approval(), p3.Signature[:]); err != nil {
		return err
	}
	sum := stmt.Hash()
	mac := hmac.New(sha256.New, in.KPw)
	mac.Write([]byte(domain.PwProof))
	mac.Write(sum[:])
	if p3.Proof != nil && !hmac.Equal(mac.Sum(nil)[:message.ProofSize], p3.Proof) {
		return protocol.CodePassword
	}
	return nil
}

// keys derives the key schedule independently, and recreates M2, M3 and M4 with the code under test.
func (in sessionIn) keys(c message.Channel, attempt uint8, out map[string]hexBytes) error {
	r := message.ReceiptNonce(in.M4[2:10])
	th3 := sha256.Sum256(slices.Concat(c.TH2[:], in.M3))
	out["prk"], out["th1"], out["th2"], out["th3"], out["r"] = c.PRK[:], c.TH1[:], c.TH2[:], th3[:], r[:]
	for number, info := range map[string][]byte{
		"2": slices.Concat([]byte(domain.M2), c.TH1[:]),
		"3": slices.Concat([]byte(domain.M3), []byte{attempt}, c.TH2[:]),
		"4": slices.Concat([]byte(domain.M4), []byte{attempt}, r[:], th3[:]),
	} {
		key := must(hkdf.Expand(sha256.New, c.PRK[:], string(info), 28))
		out["k"+number], out["n"+number] = key[:16], key[16:]
	}
	again := c
	m2 := again.SealM2(protocol.Challenge(out["chal"]), out["p2"])
	m3 := again.SealM3(attempt, out["p3"])
	m4 := again.SealM4(m3, r, out["p4"])
	if !bytes.Equal(m2, in.M2) || !bytes.Equal(m3, in.M3) || !bytes.Equal(m4, in.M4) {
		return fmt.Errorf("sealed again: %x %x %x", m2, m3, m4)
	}
	return nil
}

// performedVector returns what a C that knows P4.64 learns of the act.
func performedVector(in struct {
	P4 hexBytes `json:"p4"`
},
) (any, error) {
	p4, err := message.ParseP4(in.P4)
	if err != nil || p4.Performed == nil {
		return map[string]any{"performed": nil}, err
	}
	if !bytes.Equal(p4.Marshal(), in.P4) {
		return nil, fmt.Errorf("P4 made again is %x", p4.Marshal())
	}
	value := 0
	if *p4.Performed {
		value = 1
	}
	return map[string]any{"performed": value}, nil
}

func linkErrorVector(in struct {
	ME hexBytes `json:"me"`
},
) (any, error) {
	me, err := message.ParseLinkError(in.ME)
	if err != nil {
		return nil, err
	}
	if me.Code.String() == fmt.Sprintf("code %d", uint8(me.Code)) || !bytes.Equal(me.Marshal(), in.ME) {
		return nil, fmt.Errorf("%v, made again %x", me.Code, me.Marshal())
	}
	return map[string]any{"code": me.Code, "retry": me.Retry}, nil
}

type showIn struct {
	P2        hexBytes         `json:"p2"`
	Service   protocol.Service `json:"service"`
	Requested protocol.Level   `json:"requested"`
	Floor     protocol.Level   `json:"floor"`
	Amount    []any            `json:"amount"`
	Text      string           `json:"text"`
}

func showVector(in showIn) (any, error) {
	p2, err := message.ParseP2(in.P2)
	if err != nil {
		return nil, err
	}
	want := message.Expectation{Service: in.Service, Requested: in.Requested, Text: in.Text}
	want.Floor = func(protocol.Service) protocol.Level { return in.Floor }
	if len(in.Amount) == 2 {
		want.Amount = &protocol.Amount{Minor: uint64(in.Amount[0].(float64)), Currency: in.Amount[1].(string)}
	}
	return struct{}{}, p2.Acceptable(want)
}

type countersignIn struct {
	Key      hexBytes         `json:"key"`
	Stmt     hexBytes         `json:"stmt"`
	Decision protocol.Verdict `json:"decision"`
	Slot     uint64           `json:"slot"`
	Proof    hexBytes         `json:"proof"`
	Sig      hexBytes         `json:"sig"`
}

func countersignVector(in countersignIn) (any, error) {
	key, err := protocol.ParsePublicKey(in.Key)
	if err != nil {
		return nil, err
	}
	if _, err := message.ParseStatement(in.Stmt); err != nil {
		return nil, err
	}
	a := message.Approval{Verdict: in.Decision, Slot: in.Slot, Proof: in.Proof}
	err = message.VerifyCountersign(key, message.Statement(in.Stmt), a, in.Sig)
	return map[string]any{"sig_structure": hexBytes(sigStructureOf(message.Statement(in.Stmt), a))}, err
}

type deriveIn struct {
	MACKey     hexBytes `json:"mac_key"`
	Nonce      hexBytes `json:"nonce"`
	U          hexBytes `json:"u"`
	SigningKey hexBytes `json:"signing_key"`
	RootKey    hexBytes `json:"root_key"`
	SPIFFEID   string   `json:"spiffe_id"`
	Hour       uint32   `json:"hour"`
	Epoch      hexBytes `json:"handle_epoch"`
}

func deriveVector(in deriveIn) (any, error) {
	signing, err := protocol.ParsePublicKey(in.SigningKey)
	if err != nil {
		return nil, err
	}
	root, err := protocol.ParsePublicKey(in.RootKey)
	if err != nil {
		return nil, err
	}
	mac := func(input []byte) hexBytes {
		h := hmac.New(sha256.New, in.MACKey)
		h.Write(input)
		return h.Sum(nil)
	}
	client, device := protocol.ClientIDOf(signing), protocol.DeviceIDOf(in.SPIFFEID)
	rootHash := root.RootHash()
	return map[string]any{
		"chal":       protocol.NewChallenge(protocol.Nonce(in.Nonce), protocol.Nonce(in.U)).String(),
		"client_id":  client.String(),
		"device_id":  device.String(),
		"pairwise":   mac(derive.PairwiseInput(client, device))[:8],
		"handle_key": mac(derive.HandleKeyInput(in.Hour, derive.HandleEpoch(in.Epoch))),
		"handle_aad": hexBytes(derive.HandleAAD(device, in.Hour)),
		"seal_key":   mac(derive.SealKeyInput()),
		"root_id":    root.RootID().String(),
		"root_hash":  hexBytes(rootHash[:]),
	}, nil
}

var protectedES256 = []byte{0xA1, 0x01, 0x26}

func hpkeInfo(root protocol.RootID) []byte { return append([]byte(domain.HPKE), root[:]...) }

// payloadOf returns the detached payload of a countersignature, PROTOCOL.md §3.
func payloadOf(s message.Statement, a message.Approval) []byte {
	proof := a.Proof
	if proof == nil {
		proof = []byte{}
	}
	return cbor.Marshal([]any{[]byte(s), a.Verdict, a.Slot, proof})
}

func sigStructureOf(s message.Statement, a message.Approval) hexBytes {
	return cbor.Marshal([]any{"Signature1", protectedES256, []byte(domain.Countersign), payloadOf(s, a)})
}
