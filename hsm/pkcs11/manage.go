package pkcs11

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Destroy implements [hsm.Token] with C_DestroyObject, the private key first: if the
// process dies meanwhile, what remains is of no use.
func (t *Token) Destroy(ctx context.Context, key hsm.KeyID) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	err := t.run(ctx, key, func(s *session) error {
		gone, err := t.partsOf(s, key)
		if err != nil {
			return err
		}
		for _, h := range gone {
			if err := t.ctx.DestroyObject(s.handle, h); err != nil {
				return at("C_DestroyObject", err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("destroying key: %w", err)
	}
	t.mu.Lock()
	delete(t.keys, key)
	t.mu.Unlock()
	return nil
}

// partsOf returns the objects of a key: its private or secret key, its public halves, and its
// certificates. What an interrupted call has left is part of it.
func (t *Token) partsOf(s *session, key hsm.KeyID) (parts []pkcs11.ObjectHandle, err error) {
	found, err := t.read(s)
	if err != nil {
		return nil, err
	}
	publics, err := t.publics(s, nil)
	if err != nil {
		return nil, err
	}
	halves, marks := halvesOf(key, publics)
	for _, o := range found {
		if o.ID == key {
			parts = append(parts, o.handle)
			marks[string(o.mark)] = true
		}
	}
	if len(parts) == 0 {
		if parts, err = t.unlike(s, key, found, publics); err != nil {
			return nil, err
		}
	}
	if len(parts) > 1 {
		return nil, at("C_FindObjects", fmt.Errorf("%d keys have this id: %w", len(parts), errTaken))
	}
	parts = append(parts, halves...)
	certs, err := t.certificates(s, marks)
	for _, c := range certs {
		if c.Key == key {
			parts = append(parts, c.handle)
		}
	}
	if err == nil && len(parts) == 0 {
		err = at("C_FindObjects", errUnknown)
	}
	return parts, err
}

// halvesOf returns the public halves of a key, and each CKA_ID that its objects may have.
func halvesOf(key hsm.KeyID, publics map[string][]publicKey) (halves []pkcs11.ObjectHandle, marks map[string]bool) {
	marks = map[string]bool{string(key[:]): true}
	for mark, some := range publics {
		for _, half := range some {
			if half.id == key {
				halves = append(halves, half.handle)
				marks[mark] = true
			}
		}
	}
	return halves, marks
}

// unlike returns what belongs to a key by its CKA_ID and is no longer like the appliance's, so that read skips it: a tool
// may have changed what it may do. A CKA_ID of another length than the appliance's, or with the public halves of
// several keys, does not show whose private key it is: then unlike returns an error that wraps errTaken.
func (t *Token) unlike(s *session, key hsm.KeyID, found []object, publics map[string][]publicKey) (all []pkcs11.ObjectHandle, err error) {
	known := func(h pkcs11.ObjectHandle) bool {
		return slices.ContainsFunc(found, func(o object) bool { return o.handle == h })
	}
	all, err = t.findClasses(s, []*pkcs11.Attribute{marked(key[:])}, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, known)
	for mark, halves := range publics {
		if mark == string(key[:]) || mark == "" || !slices.ContainsFunc(halves, func(p publicKey) bool { return p.id == key }) {
			continue
		}
		some, err := t.find(s, pkcs11.CKO_PRIVATE_KEY, []*pkcs11.Attribute{marked([]byte(mark))})
		if err != nil {
			return nil, err
		}
		some = slices.DeleteFunc(some, known)
		if len(some) > 0 && (len(halves) > 1 || len(mark) != len(key)) {
			return nil, at("C_FindObjects", fmt.Errorf("a private key with CKA_ID %x may be this one, destroy it with a tool first: %w", mark, errTaken))
		}
		all = append(all, some...)
	}
	return all, nil
}

func (t *Token) findClasses(s *session, match []*pkcs11.Attribute, classes ...uint) (all []pkcs11.ObjectHandle, err error) {
	for _, class := range classes {
		found, err := t.find(s, class, match)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// StoreCertificate implements [hsm.Token] with C_CreateObject.
func (t *Token) StoreCertificate(ctx context.Context, c hsm.Certificate) error {
	cert, err := check.Certificate(c)
	if err != nil {
		return err
	}
	serial, err := asn1.Marshal(cert.SerialNumber)
	if err != nil {
		return fmt.Errorf("serial number of certificate %q: %v: %w", c.Label, err, hsm.ErrInput)
	}
	mark := c.Key[:]
	if o, err := t.lookUp(ctx, c.Key); err == nil {
		mark = o.mark
	}
	same := []*pkcs11.Attribute{marked(mark), pkcs11.NewAttribute(pkcs11.CKA_VALUE, c.DER)}
	template := append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
		pkcs11.NewAttribute(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, c.Label),
		pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, cert.RawSubject),
		pkcs11.NewAttribute(pkcs11.CKA_ISSUER, cert.RawIssuer),
		pkcs11.NewAttribute(pkcs11.CKA_SERIAL_NUMBER, serial),
	}, same...)
	t.changing.Lock()
	defer t.changing.Unlock()
	err = t.run(ctx, c.Key, func(s *session) error {
		there, err := t.find(s, pkcs11.CKO_CERTIFICATE, same)
		if err != nil || len(there) > 0 {
			return err
		}
		_, err = t.ctx.CreateObject(s.handle, template)
		return at("C_CreateObject", err)
	})
	return t.certified(c, err)
}

// certified returns [hsm.ErrUnsupported] if the module refused the template: it has no
// certificates.
func (t *Token) certified(c hsm.Certificate, err error) error {
	var failed *callError
	if errors.As(err, &failed) && unsupported(failed.cause) {
		return fmt.Errorf("module lacks CKO_CERTIFICATE, needed for storing certificates: %v: %w", err, hsm.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("storing certificate %q: %w", c.Label, err)
	}
	return nil
}

// Certificates implements [hsm.Token]. It skips certificates whose CKA_ID is neither the hash of
// their public key nor the CKA_ID of that key on the token.
func (t *Token) Certificates(ctx context.Context) (certs []hsm.Certificate, err error) {
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		certs = nil
		found, err := t.read(s)
		if err != nil {
			return err
		}
		marks := map[string]bool{}
		keys := map[hsm.KeyID]string{}
		for _, o := range found {
			marks[string(o.mark)], keys[o.ID] = true, string(o.mark)
		}
		all, err := t.certificates(s, marks)
		for _, c := range all {
			if c.mark == string(c.Key[:]) || c.mark == keys[c.Key] {
				certs = append(certs, c.Certificate)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing certificates: %w", err)
	}
	return certs, nil
}

// storedCertificate is a certificate object.
type storedCertificate struct {
	hsm.Certificate
	handle pkcs11.ObjectHandle
	mark   string // CKA_ID
}

// certificates reads the certificates on the token that have one of the marks as their CKA_ID, or
// one of 20 bytes.
func (t *Token) certificates(s *session, marks map[string]bool) (all []storedCertificate, err error) {
	handles, err := t.find(s, pkcs11.CKO_CERTIFICATE, nil)
	if err != nil {
		return nil, err
	}
	for _, h := range handles {
		a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_VALUE)
		if err != nil {
			return nil, err
		}
		if !ok || len(a[0]) != len(hsm.KeyID{}) && !marks[string(a[0])] {
			continue
		}
		c := hsm.Certificate{Label: string(a[1]), DER: a[2]}
		if c.Key, err = check.CertificateKey(c.DER); err != nil {
			continue
		}
		if _, err := check.Certificate(c); err == nil {
			all = append(all, storedCertificate{c, h, string(a[0])})
		}
	}
	return all, nil
}
