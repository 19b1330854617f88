package pkcs11

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Destroy implements [hsm.Token] with C_DestroyObject, the private key first,
// so that what a process that dies over it leaves is of no use.
func (t *Token) Destroy(ctx context.Context, key hsm.KeyID) error {
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
	id := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, key[:])}
	err := t.run(ctx, key, func(s *session) error {
		secrets, err := t.findClasses(s, id, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_SECRET_KEY)
		if err != nil {
			return err
		}
		others, err := t.findClasses(s, id, pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE)
		if err != nil {
			return err
		}
		if len(secrets) > 1 || len(secrets)+len(others) == 0 {
			return at("C_FindObjects", errUnknown)
		}
		for _, h := range append(secrets, others...) {
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
	same := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ID, c.Key[:]), pkcs11.NewAttribute(pkcs11.CKA_VALUE, c.DER),
	}
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
	t.keepMu.Lock()
	defer t.keepMu.Unlock()
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

// certified takes a template that is refused for a module without certificates.
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

// Certificates implements [hsm.Token]. Those whose CKA_ID is not that of their
// public key are somebody else's.
func (t *Token) Certificates(ctx context.Context) (certs []hsm.Certificate, err error) {
	err = t.run(ctx, hsm.KeyID{}, func(s *session) error {
		certs = nil
		handles, err := t.find(s, pkcs11.CKO_CERTIFICATE, nil)
		if err != nil {
			return err
		}
		for _, h := range handles {
			a, ok, err := t.attributes(s, h, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_VALUE)
			if err != nil {
				return err
			}
			if !ok || len(a[0]) != len(hsm.KeyID{}) {
				continue
			}
			c := hsm.Certificate{Key: hsm.KeyID(a[0]), Label: string(a[1]), DER: a[2]}
			if _, err := check.Certificate(c); err == nil {
				certs = append(certs, c)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing certificates: %w", err)
	}
	return certs, nil
}
