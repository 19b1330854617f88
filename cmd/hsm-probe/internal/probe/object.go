package probe

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strconv"

	"github.com/miekg/pkcs11"

	"countersign/cmd/hsm-probe/internal/report"
	"countersign/hsm"
	ours "countersign/hsm/pkcs11"
)

// pair is a temporary key pair with what CKA_EC_POINT said; zero for none.
type pair struct {
	public, private pkcs11.ObjectHandle
	point           []byte
}

// attr shortens templates.
func attr(typ uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(typ, value) }

// draft returns the attributes of every temporary object: a label by which the next probe
// recognizes it, and CKA_TOKEN false if the module allows that.
func (p *prober) draft(token bool) []*pkcs11.Attribute {
	p.number++
	id := make([]byte, 20)
	_, _ = rand.Read(id) // never fails, see crypto/rand.Read
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_LABEL, report.Label+strconv.Itoa(p.number)), attr(pkcs11.CKA_ID, id),
	}
}

// temporary makes an object that is destroyed at the end: a session object, or a token
// object if the module has no session objects of the kind.
func (p *prober) temporary(make func(draft []*pkcs11.Attribute) error) error {
	err := make(p.draft(p.token))
	if err == nil || p.token {
		return err
	}
	if make(p.draft(true)) == nil {
		p.token = true
		return nil
	}
	return err
}

func (p *prober) keep(handles ...pkcs11.ObjectHandle) { p.made = append(p.made, handles...) }

// generate makes a secret key of 32 bytes.
func (p *prober) generate(mechanism uint, template ...*pkcs11.Attribute) (key pkcs11.ObjectHandle, err error) {
	err = p.temporary(func(draft []*pkcs11.Attribute) (err error) {
		full := append(append(draft, attr(pkcs11.CKA_VALUE_LEN, 32)), template...)
		key, err = p.GenerateKey(p.main, mech(mechanism, nil), full)
		return at("C_GenerateKey", err)
	})
	if err == nil {
		p.keep(key)
	}
	return key, err
}

// generatePair makes a key pair; token overrides where it lies.
func (p *prober) generatePair(mechanism uint, public, private []*pkcs11.Attribute) (k pair, err error) {
	err = p.temporary(func(draft []*pkcs11.Attribute) (err error) {
		k.public, k.private, err = p.GenerateKeyPair(p.main, mech(mechanism, nil), publicHalf(draft, public), concat(draft, private))
		return at("C_GenerateKeyPair", err)
	})
	if err == nil {
		p.keep(k.public, k.private)
	}
	return k, err
}

// publicHalf returns the draft of an object that is visible without a login.
func publicHalf(draft, more []*pkcs11.Attribute) (list []*pkcs11.Attribute) {
	for _, a := range draft {
		if a.Type == pkcs11.CKA_PRIVATE {
			a = attr(pkcs11.CKA_PRIVATE, false)
		}
		list = append(list, a)
	}
	return append(list, more...)
}

func concat(a, b []*pkcs11.Attribute) []*pkcs11.Attribute {
	return append(append([]*pkcs11.Attribute{}, a...), b...)
}

func mech(typ uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(typ, parameter)}
}

// value reads one attribute.
func (p *prober) value(h pkcs11.ObjectHandle, typ uint) ([]byte, error) {
	got, err := p.GetAttributeValue(p.main, h, []*pkcs11.Attribute{attr(typ, nil)})
	if err != nil {
		return nil, at("C_GetAttributeValue", err)
	}
	return got[0].Value, nil
}

// at adds the name of the function to an error; nil stays nil.
func at(function string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", function, err)
}

// find lists the objects of a template in a session.
func find(raw *ours.Module, s pkcs11.SessionHandle, template []*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	if err := raw.FindObjectsInit(s, template); err != nil {
		return nil, at("C_FindObjectsInit", err)
	}
	for {
		some, _, err := raw.FindObjects(s, 256)
		if err != nil || len(some) == 0 {
			if gone := raw.FindObjectsFinal(s); err == nil {
				err = gone
			}
			return all, at("C_FindObjects", err)
		}
		all = append(all, some...)
	}
}

// Clean destroys the objects of an interrupted job.
func Clean(cfg ours.Config) (report.Cleaned, error) {
	raw, err := enter(cfg)
	if err != nil {
		return report.Cleaned{}, err
	}
	n, err := removeLeft(raw)
	return report.Cleaned{Removed: n}, err
}

// removeLeft destroys every object whose label begins with [report.Label].
func removeLeft(raw *ours.Module) (removed int, err error) {
	all, err := find(raw, raw.Login, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true)})
	if err != nil {
		return 0, fmt.Errorf("%v: %w", err, hsm.ErrUnavailable)
	}
	for _, h := range all {
		got, err := raw.GetAttributeValue(raw.Login, h, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
		if err != nil || !bytes.HasPrefix(got[0].Value, []byte(report.Label)) {
			continue // a foreign object
		}
		if err := raw.DestroyObject(raw.Login, h); err != nil {
			return removed, fmt.Errorf("removing %s: C_DestroyObject: %v: %w", got[0].Value, err, hsm.ErrUnavailable)
		}
		removed++
	}
	return removed, nil
}
