package shim_test

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"unsafe"

	"github.com/miekg/pkcs11"

	"countersign/softhsm-test/harness"
)

// Probes run in another process, because a module reads the environment once. The process is this test binary with
// probeVariable set to the PIN; it prints the results as JSON.
const probeVariable = "MASK_PROBE_PIN"

// A probe does one thing through the module, and checks the result in software.
type probe struct {
	*pkcs11.Ctx
	session pkcs11.SessionHandle
	slot    uint
}

var probes = map[string]func(*probe) error{
	"copy": (*probe).copies, "set-id": (*probe).setsID, "ecdh-null": (*probe).agrees, "ecdh-aes": (*probe).agreesToAES,
	"ecdh-sha256": (*probe).agreesSHA256, "ecb-data": (*probe).encryptsData, "digest": (*probe).digests,
	"hmac-generic": func(p *probe) error { return p.hmacs(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKK_GENERIC_SECRET) },
	"hmac-typed":   func(p *probe) error { return p.hmacs(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKK_SHA256_HMAC) },
	"hmac-nshield": func(p *probe) error { return p.hmacs(ckmNCHMACKeyGen, pkcs11.CKK_SHA256_HMAC) },
	"hmac-long":    (*probe).macsMuch, "hmac-unsized": (*probe).hmacUnsized,
	"kwp-210a":     func(p *probe) error { return p.wraps(pkcs11.CKM_AES_KEY_WRAP_PAD) },
	"kwp-luna":     func(p *probe) error { return p.wraps(0x80000171) },
	"kwp-marvell":  func(p *probe) error { return p.wraps(0x8000216f) },
	"session-pair": func(p *probe) error { return p.pair(false) }, "token-pair": func(p *probe) error { return p.pair(true) },
	"closed-public": (*probe).closesPublic, "others": (*probe).findsOthers,
}

const ckmNCHMACKeyGen = 0xde436997

// errWrong: the module answered, and wrongly.
var errWrong = errors.New("wrong")

// runProbes is the process.
func runProbes(module, pin string) int {
	p, err := openProbe(module, pin)
	results := map[string]string{"login": outcome(err)}
	if err == nil {
		for name, f := range probes {
			results[name] = outcome(f(p))
		}
		results["list"], err = p.listed()
	}
	raw, _ := json.Marshal(results) // strings
	fmt.Println(string(raw))
	if err != nil && results["login"] == "ok" {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func outcome(err error) string {
	var code pkcs11.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &code):
		name := strings.TrimPrefix(code.Error(), fmt.Sprintf("pkcs11: 0x%X: ", uint(code)))
		return cmp.Or(name, fmt.Sprintf("%#x", uint(code)))
	}
	return err.Error()
}

func openProbe(module, pin string) (*probe, error) {
	p := &probe{Ctx: pkcs11.New(module)}
	if p.Ctx == nil {
		return nil, errors.New("module does not load")
	}
	if err := p.Initialize(); err != nil {
		return nil, err
	}
	slots, err := p.GetSlotList(true)
	if err != nil {
		return nil, err
	}
	p.slot = slots[0]
	if p.session, err = p.OpenSession(p.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
		return nil, err
	}
	return p, p.Login(p.session, pkcs11.CKU_USER, pin)
}

// listed returns the mechanisms among some, "0x210a 0x1104".
func (p *probe) listed() (string, error) {
	list, err := p.GetMechanismList(p.slot)
	if err != nil {
		return "", err
	}
	var there []string
	for _, m := range []uint{pkcs11.CKM_AES_ECB_ENCRYPT_DATA, pkcs11.CKM_AES_KEY_WRAP_PAD, 0x80000171, 0x8000216f, ckmNCHMACKeyGen} {
		for _, l := range list {
			if l.Mechanism == m {
				there = append(there, fmt.Sprintf("%#x", m))
				if _, err := p.GetMechanismInfo(p.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)}); err != nil {
					return "", err
				}
			}
		}
	}
	return strings.Join(there, " "), nil
}

// of makes a template in the order of the attributes' numbers.
func of(attributes ...any) (list []*pkcs11.Attribute) {
	for i := 0; i < len(attributes); i += 2 {
		list = append(list, pkcs11.NewAttribute(uint(attributes[i].(int)), attributes[i+1]))
	}
	return list
}

func mechanism(m uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, parameter)}
}

var p256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// newPair makes a pair for derivations, and returns its point.
func (p *probe) newPair(onToken bool, public ...any) (private pkcs11.ObjectHandle, point *ecdh.PublicKey, err error) {
	half, private, err := p.GenerateKeyPair(p.session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil),
		of(append(public, pkcs11.CKA_EC_PARAMS, p256, pkcs11.CKA_TOKEN, onToken)...),
		of(pkcs11.CKA_TOKEN, onToken, pkcs11.CKA_PRIVATE, true, pkcs11.CKA_SENSITIVE, true, pkcs11.CKA_DERIVE, true))
	if err != nil {
		return 0, nil, err
	}
	a, err := p.GetAttributeValue(p.session, half, of(pkcs11.CKA_EC_POINT, nil))
	if err != nil {
		return 0, nil, err
	}
	point, err = ecdh.P256().NewPublicKey(a[0].Value[2:]) // an octet string
	return private, point, err
}

func (p *probe) pair(onToken bool) error {
	_, _, err := p.newPair(onToken)
	return err
}

func (p *probe) closesPublic() error {
	_, _, err := p.newPair(true, pkcs11.CKA_PRIVATE, false)
	return err
}

// agreement derives a key with a new pair, and returns what Z is.
func (p *probe) agreement(kdf uint, shared []byte, list []*pkcs11.Attribute) (key pkcs11.ObjectHandle, z []byte, err error) {
	private, point, err := p.newPair(true)
	if err != nil {
		return 0, nil, err
	}
	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return 0, nil, err
	}
	if z, err = own.ECDH(point); err != nil {
		return 0, nil, err
	}
	params := pkcs11.NewECDH1DeriveParams(kdf, shared, own.PublicKey().Bytes())
	key, err = p.DeriveKey(p.session, mechanism(pkcs11.CKM_ECDH1_DERIVE, params), private, list)
	return key, z, err
}

func secret(keyType int, more ...any) []*pkcs11.Attribute {
	return of(append([]any{
		pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE, keyType, pkcs11.CKA_VALUE_LEN, 32, pkcs11.CKA_TOKEN, false,
	}, more...)...)
}

func (p *probe) agrees() error {
	key, z, err := p.agreement(pkcs11.CKD_NULL, nil, secret(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SENSITIVE, false, pkcs11.CKA_EXTRACTABLE, true))
	if err != nil {
		return err
	}
	a, err := p.GetAttributeValue(p.session, key, of(pkcs11.CKA_VALUE, nil))
	if err == nil && !bytes.Equal(a[0].Value, z) {
		err = errWrong
	}
	return err
}

func (p *probe) agreesToAES() error {
	_, _, err := p.agreement(pkcs11.CKD_NULL, nil, secret(pkcs11.CKK_AES, pkcs11.CKA_SENSITIVE, true, pkcs11.CKA_DERIVE, true))
	return err
}

// agreesSHA256 checks the KDF by an HMAC under the derived key.
func (p *probe) agreesSHA256() error {
	shared := []byte("shared")
	key, z, err := p.agreement(pkcs11.CKD_SHA256_KDF, shared,
		secret(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_PRIVATE, true, pkcs11.CKA_SENSITIVE, true, pkcs11.CKA_SIGN, true))
	if err != nil {
		return err
	}
	k := sha256.Sum256(append(append(z, binary.BigEndian.AppendUint32(nil, 1)...), shared...))
	return p.checkMAC(key, k[:])
}

func (p *probe) mac(key pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	if err := p.SignInit(p.session, mechanism(pkcs11.CKM_SHA256_HMAC, nil), key); err != nil {
		return nil, err
	}
	return p.Sign(p.session, data)
}

func (p *probe) checkMAC(key pkcs11.ObjectHandle, k []byte) error {
	got, err := p.mac(key, []byte("data"))
	m := hmac.New(sha256.New, k)
	m.Write([]byte("data"))
	if err == nil && !hmac.Equal(got, m.Sum(nil)) {
		err = errWrong
	}
	return err
}

// hmacs makes an HMAC key, uses it, and reads its type.
func (p *probe) hmacs(by uint, keyType int) error {
	key, err := p.GenerateKey(p.session, mechanism(by, nil), secret(keyType, pkcs11.CKA_SIGN, true))
	if err != nil {
		return err
	}
	if _, err := p.mac(key, []byte("data")); err != nil {
		return err
	}
	a, err := p.GetAttributeValue(p.session, key, of(pkcs11.CKA_KEY_TYPE, nil))
	if err == nil && binary.NativeEndian.Uint64(a[0].Value) != uint64(keyType) {
		err = errWrong
	}
	return err
}

// hmacUnsized makes an HMAC key on the token whose type says its length.
func (p *probe) hmacUnsized() error {
	key, err := p.GenerateKey(p.session, mechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, nil), of(
		pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE, pkcs11.CKK_SHA256_HMAC, pkcs11.CKA_TOKEN, true, pkcs11.CKA_SIGN, true))
	if err == nil {
		_, err = p.mac(key, []byte("data"))
	}
	return err
}

func (p *probe) macsMuch() error {
	key, err := p.CreateObject(p.session, of(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET,
		pkcs11.CKA_TOKEN, false, pkcs11.CKA_SIGN, true, pkcs11.CKA_VALUE, make([]byte, 32)))
	if err != nil {
		return err
	}
	_, err = p.mac(key, make([]byte, 16289))
	return err
}

func (p *probe) newAES(usage int) (pkcs11.ObjectHandle, error) {
	return p.GenerateKey(p.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), secret(pkcs11.CKK_AES, usage, true))
}

// wraps wraps 32 bytes as RFC 5649 does, with a key that may do no other thing.
func (p *probe) wraps(by uint) error {
	with, err := p.GenerateKey(p.session, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), secret(pkcs11.CKK_AES, pkcs11.CKA_WRAP, true,
		pkcs11.CKA_UNWRAP, true, pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, uint64(by))))
	if err != nil {
		return err
	}
	value := bytes.Repeat([]byte{7}, 32)
	key, err := p.CreateObject(p.session, of(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY, pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET,
		pkcs11.CKA_TOKEN, false, pkcs11.CKA_EXTRACTABLE, true, pkcs11.CKA_VALUE, value))
	if err != nil {
		return err
	}
	wrapped, err := p.WrapKey(p.session, mechanism(by, nil), with, key)
	if err == nil && len(wrapped) != 40 {
		err = errWrong
	}
	if err != nil {
		return err
	}
	again, err := p.UnwrapKey(p.session, mechanism(by, nil), with, wrapped, of(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY,
		pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_TOKEN, false, pkcs11.CKA_SENSITIVE, false))
	if err != nil {
		return err
	}
	a, err := p.GetAttributeValue(p.session, with, of(pkcs11.CKA_ALLOWED_MECHANISMS, nil))
	if err == nil && binary.NativeEndian.Uint64(a[0].Value) != uint64(by) {
		err = errWrong
	}
	return errors.Join(err, p.DestroyObject(p.session, again))
}

func (p *probe) encryptsData() error {
	base, err := p.newAES(pkcs11.CKA_DERIVE)
	if err != nil {
		return err
	}
	var pins runtime.Pinner
	defer pins.Unpin()
	data := make([]byte, 32)
	pins.Pin(&data[0])
	param := binary.NativeEndian.AppendUint64(nil, uint64(uintptr(unsafe.Pointer(&data[0])))) // CK_KEY_DERIVATION_STRING_DATA
	param = binary.NativeEndian.AppendUint64(param, uint64(len(data)))
	_, err = p.DeriveKey(p.session, mechanism(pkcs11.CKM_AES_ECB_ENCRYPT_DATA, param), base, secret(pkcs11.CKK_AES))
	return err
}

func (p *probe) copies() error {
	key, err := p.newData()
	if err == nil {
		_, err = p.CopyObject(p.session, key, of(pkcs11.CKA_LABEL, "copy"))
	}
	return err
}

func (p *probe) setsID() error {
	key, err := p.newData()
	if err == nil {
		err = p.SetAttributeValue(p.session, key, of(pkcs11.CKA_ID, []byte{1, 2, 3}))
	}
	return err
}

// newData makes a public key, which every module has.
func (p *probe) newData() (pkcs11.ObjectHandle, error) {
	public, _, err := p.GenerateKeyPair(p.session, mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil),
		of(pkcs11.CKA_EC_PARAMS, p256), of(pkcs11.CKA_TOKEN, true, pkcs11.CKA_SIGN, true))
	return public, err
}

func (p *probe) digests() error {
	if err := p.DigestInit(p.session, mechanism(pkcs11.CKM_SHA256, nil)); err != nil {
		return err
	}
	got, err := p.Digest(p.session, []byte("data"))
	if want := sha256.Sum256([]byte("data")); err == nil && !bytes.Equal(got, want[:]) {
		err = errWrong
	}
	return err
}

// findsOthers looks for a key that another process makes meanwhile.
func (p *probe) findsOthers() error {
	cmd := exec.Command("pkcs11-tool", "--module", harness.SoftHSM, "--login", "--pin", os.Getenv(probeVariable+"_PLAIN"),
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "other")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := p.FindObjectsInit(p.session, of(pkcs11.CKA_LABEL, "other")); err != nil {
		return err
	}
	found, _, err := p.FindObjects(p.session, 10)
	if err == nil && len(found) != 2 {
		err = fmt.Errorf("%d of 2 objects", len(found))
	}
	return errors.Join(err, p.FindObjectsFinal(p.session))
}
