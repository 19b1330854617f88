package pkcs11

import (
	"encoding/asn1"
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/border"
)

// batch is how many handles one C_FindObjects returns.
const batch = 256

// oidP256 is CKA_EC_PARAMS of our keys, the DER of 1.2.840.10045.3.1.7.
var oidP256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// read returns the keys on the token that fit the attributes and that the
// appliance can use. Anything it does not understand is somebody else's.
func (t *Token) read(s *session, match ...*pkcs11.Attribute) ([]object, error) {
	points, err := t.points(s, match)
	if err != nil {
		return nil, err
	}
	var keys []object
	for _, class := range []uint{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY} {
		handles, err := t.find(s, class, match)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			o, ours, err := t.describe(s, h, class, points)
			if err != nil {
				return nil, err
			}
			if ours {
				keys = append(keys, o)
			}
		}
	}
	return keys, nil
}

// find lists token objects of a class.
func (t *Token) find(s *session, class uint, match []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	template := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}, match...)
	return t.findAll(s, template)
}

func (t *Token) findAll(s *session, template []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	if err := t.ctx.FindObjectsInit(s.handle, template); err != nil {
		return nil, at("C_FindObjectsInit", err)
	}
	for {
		some, _, err := t.ctx.FindObjects(s.handle, batch)
		if err != nil {
			_ = t.ctx.FindObjectsFinal(s.handle)
			return nil, at("C_FindObjects", err)
		}
		if len(some) == 0 {
			return all, at("C_FindObjectsFinal", t.ctx.FindObjectsFinal(s.handle))
		}
		all = append(all, some...)
	}
}

// points reads the public points whose CKA_ID is their hash; a key pair of
// ours has exactly one.
func (t *Token) points(s *session, match []*pkcs11.Attribute) (map[hsm.KeyID][]byte, error) {
	handles, err := t.find(s, pkcs11.CKO_PUBLIC_KEY, match)
	if err != nil {
		return nil, err
	}
	points := map[hsm.KeyID][]byte{}
	for _, h := range handles {
		a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT)
		if err != nil {
			return nil, err
		}
		if !ok || string(a[1]) != string(oidP256) {
			continue
		}
		point, err := decodePoint(a[2])
		if err != nil {
			continue
		}
		if id, err := border.KeyID(point); err == nil && string(a[0]) == string(id[:]) {
			points[id] = point
		}
	}
	return points, nil
}

// describe reads one private or secret key; false when it is not one of ours.
func (t *Token) describe(s *session, h pkcs11.ObjectHandle, class uint, points map[hsm.KeyID][]byte) (o object, ours bool, err error) {
	a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_KEY_TYPE,
		pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE)
	if err != nil || !ok || len(a[0]) != len(o.ID) || !truth(a[3]) || truth(a[4]) {
		return o, false, err
	}
	o.handle, o.Label = h, string(a[1])
	copy(o.ID[:], a[0])
	usage, ok, err := t.usage(s, h, class, ulong(a[2]))
	if err != nil || !ok {
		return o, false, err
	}
	o.Usage = usage
	if class == pkcs11.CKO_PRIVATE_KEY {
		o.Public, ok = points[o.ID]
	}
	return o, ok, nil
}

// usage reads what a key may do. More than one usage makes it not ours.
func (t *Token) usage(s *session, h pkcs11.ObjectHandle, class, keyType uint) (hsm.Usage, bool, error) {
	for usage := hsm.SignP256; usage <= hsm.WrapKey; usage++ {
		p := profiles[usage]
		if p.class != class || p.keyType != keyType {
			continue
		}
		values, ok, err := t.attributes(s, h, p.usages...)
		if err != nil {
			return 0, false, err
		}
		for i, v := range values {
			ok = ok && truth(v) == p.allows(p.usages[i])
		}
		if ok {
			return usage, true, nil
		}
	}
	return 0, false, nil
}

// attributes reads several values; false when the object does not have them
// all, which is so for objects of others. Only a lost token or session is an
// error here.
func (t *Token) attributes(s *session, h pkcs11.ObjectHandle, types ...uint) (values [][]byte, ok bool, err error) {
	template := make([]*pkcs11.Attribute, len(types))
	for i, typ := range types {
		template[i] = pkcs11.NewAttribute(typ, nil)
	}
	got, err := t.ctx.GetAttributeValue(s.handle, h, template)
	if err != nil {
		if c := classify(err); c == other || c == refind || c == input {
			return nil, false, nil
		}
		return nil, false, at("C_GetAttributeValue", err)
	}
	for _, a := range got {
		values = append(values, a.Value)
	}
	return values, true, nil
}

func truth(v []byte) bool { return len(v) == 1 && v[0] == 1 }

func ulong(v []byte) uint {
	if len(v) != 8 {
		return ^uint(0)
	}
	return uint(binary.NativeEndian.Uint64(v))
}

// decodePoint accepts CKA_EC_POINT as the standard's OCTET STRING, and as the
// bare point and the BIT STRING that modules return instead.
func decodePoint(v []byte) ([]byte, error) {
	if len(v) == border.PointLen && v[0] == 4 {
		return v, nil
	}
	var octets []byte
	if rest, err := asn1.Unmarshal(v, &octets); err == nil && len(rest) == 0 && len(octets) == border.PointLen {
		return octets, nil
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(v, &bits); err == nil && len(rest) == 0 && bits.BitLength == 8*border.PointLen {
		return bits.Bytes, nil
	}
	return nil, fmt.Errorf("EC point of %d bytes is in no known encoding", len(v))
}
