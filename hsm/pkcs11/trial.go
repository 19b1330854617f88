package pkcs11

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"countersign/hsm"
	"countersign/hsm/internal/check"
	"countersign/hsm/internal/kwp"
)

// This file tries, when the token is opened, what requests will need: a derivation, a MAC, a key
// wrap and an import, each with session objects that are destroyed at once. A mechanism list says
// what a module knows, and not with which parameter and template it accepts it.

// errRefused means that the module does not do something in this way, and is otherwise well.
var errRefused = errors.New("refused")

// refusal is an error of the module that means errRefused.
type refusal struct{ error }

func (r refusal) Unwrap() error        { return r.error }
func (r refusal) Is(target error) bool { return target == errRefused }

// chooseWays tries each way until one works. It returns an error if the module fails, which says
// nothing about its ways. What works in no way is in t.refused, and the module counts as without
// the mechanism.
func (t *Token) chooseWays() error {
	t.ways = standard
	t.refused = map[string]string{}
	return t.run(background, hsm.KeyID{}, func(s *session) error {
		for _, trial := range []func(*session) error{t.tryMAC, t.tryDerive, t.tryWrap, t.tryImport} {
			if err := trial(s); err != nil {
				return err
			}
		}
		return nil
	})
}

// refuse notes that a mechanism works in no way.
func (t *Token) refuse(mechanism string, how error) {
	t.have[mechanisms[mechanism]] = false
	t.refused[mechanism] = how.Error()
}

// outcome calls try until the outcome is clear, and returns nil, an error that wraps errRefused, or
// the error of a module that fails. A code that may mean an outage, or a wrong result, is no refusal:
// otherwise a worker that starts during a fault would do without the way for its whole life.
func (t *Token) outcome(try func() error) (err error) {
	for range hsm.Tries {
		err = try()
		switch c := classify(err); {
		case err == nil, errors.Is(err, errRefused):
			return err
		case c == input, c == wrongKey, c == lacking, c == other, c == taken, unsupported(err):
			return refusal{err}
		case !ambiguous(err) && c != nonsense:
			return err
		}
	}
	return err
}

// tryMAC finds the type of HMAC keys that the module makes and uses.
func (t *Token) tryMAC(s *session) error {
	if t.have.check(using(hsm.MACKey)) != nil {
		t.ways.mac = macWay{}
		return nil
	}
	var refused []string
	for _, way := range macWays {
		if way.keygen != pkcs11.CKM_GENERIC_SECRET_KEY_GEN && !t.have[way.keygen] {
			continue
		}
		t.ways.mac = way
		err := t.seeing(secretUsages, func() error { return t.tryMACKey(s) })
		if err == nil || !errors.Is(err, errRefused) {
			return err
		}
		refused = append(refused, err.Error())
	}
	t.ways.mac = macWay{}
	t.refuse("CKM_SHA256_HMAC", errors.New(strings.Join(refused, "; ")))
	return nil
}

// seeing is outcome. If the module refuses a template, seeing finds out which usages it refuses to
// see, and the others stay.
func (t *Token) seeing(usages []uint, try func() error) error {
	err := t.outcome(try)
	if !errors.Is(err, errRefused) || !unsupported(err) {
		return err
	}
	before := t.ways.unseen
	t.ways.unseen = slices.Concat(before, usages)
	if without := t.outcome(try); without != nil {
		t.ways.unseen = before
		return err
	}
	for _, usage := range usages {
		all := t.ways.unseen
		t.ways.unseen = slices.DeleteFunc(slices.Clone(all), func(u uint) bool { return u == usage })
		if err := t.outcome(try); errors.Is(err, errRefused) {
			t.ways.unseen = all
		} else if err != nil {
			return err
		}
	}
	return nil
}

// tryMACKey makes an HMAC key and uses it. It is a session object, or on the token if the module
// has no such session objects.
func (t *Token) tryMACKey(s *session) (err error) {
	key, err := t.trialSecret(s, hsm.MACKey, false)
	if err != nil && !ambiguous(err) {
		p := t.profile(hsm.MACKey)
		key, err = t.makeSecret(s, p, p.secret(random(len(hsm.KeyID{})), trialLabel))
	}
	if err != nil {
		return err
	}
	defer t.destroy(s, key, &err)
	_, err = t.native.sign(s, key, hmacSHA256, []byte("countersign trial v1"))
	return err
}

// trialSecret makes a secret key as a session object.
func (t *Token) trialSecret(s *session, usage hsm.Usage, extractable bool) (pkcs11.ObjectHandle, error) {
	p := t.profile(usage)
	return t.makeSecret(s, p, p.session(random(len(hsm.KeyID{})), extractable))
}

// makeSecret is C_GenerateKey without optional attributes.
func (t *Token) makeSecret(s *session, p profile, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	key, err := t.ctx.GenerateKey(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(p.keygen, nil)}, t.seen(template))
	return key, at(fmt.Sprintf("C_GenerateKey with %s of %s", nameOf(mechanisms, p.keygen), nameOf(keyTypes, p.keyType)), err)
}

// trialPair makes a key pair for ECDH of session objects.
func (t *Token) trialPair(s *session) (draft, []byte, error) {
	p, id := profiles[hsm.DeriveP256], random(len(hsm.KeyID{}))
	made, err := t.generateDraft(s, p, pair{p.publicHalf(id), p.privateHalf(id, false)})
	if err != nil {
		return draft{}, nil, err
	}
	point, err := t.point(s, made.public)
	if err != nil {
		made.end(new(error)) // the first error counts
	}
	return made, point, err
}

// tryDerive finds the way from a key agreement to a shared secret.
func (t *Token) tryDerive(s *session) error {
	if t.have.check(using(hsm.DeriveP256)) != nil {
		t.ways.agreement = agreeNone
		return nil
	}
	var own draft
	err := t.seeing(privateUsages, func() (err error) {
		if own.end != nil {
			own.end(new(error)) // a session object that stays ends with the process
		}
		own, _, err = t.trialPair(s)
		return err
	})
	if errors.Is(err, errRefused) && unsupported(err) { // the public half
		t.settled &^= openHalf
		t.optional = t.settled
		err = t.outcome(func() (err error) {
			own, _, err = t.trialPair(s)
			return err
		})
		if err != nil {
			t.settled |= openHalf
			t.optional = t.settled
		}
	}
	if err != nil {
		return t.unpaired(err)
	}
	defer func() { own.end(new(error)) }()
	return t.tryAgreements(s, own)
}

// agreeTrials are the ways in the order of their trials.
var agreeTrials = []struct {
	way   agreeWay
	openZ bool
}{{agreeRead, false}, {agreeRead, true}, {agreeDigest, false}, {agreeKDF, false}}

// tryAgreements compares the shared secret of each way with the one of software until one is the same.
func (t *Token) tryAgreements(s *session, own draft) error {
	point, err := t.point(s, own.public)
	if err != nil {
		return err
	}
	var refused []string
	for _, trial := range agreeTrials {
		t.ways.agreement, t.ways.openZ = trial.way, trial.openZ
		err := t.outcome(func() error { return t.tryAgreement(s, own, point) })
		if err == nil || !errors.Is(err, errRefused) {
			return err
		}
		if !trial.openZ {
			refused = append(refused, fmt.Sprintf("with %s: %v", trial.way, err))
		}
	}
	t.ways.agreement = agreeNone
	t.refuse("CKM_ECDH1_DERIVE", errors.New(strings.Join(refused, "; ")))
	return nil
}

// tryAgreement decapsulates for each KEM of the way. point is the public half of the key.
func (t *Token) tryAgreement(s *session, own draft, point []byte) error {
	if t.ways.agreement == agreeKDF && t.ways.mac == (macWay{}) {
		return fmt.Errorf("no key makes MACs: %w", errRefused)
	}
	public, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return err
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	z, err := peer.ECDH(public)
	if err != nil {
		return err
	}
	enc := peer.PublicKey().Bytes()
	to := recipient{object{handle: own.private}, enc, slices.Concat(enc, point)}
	for _, kem := range t.KEMs() {
		got, err := t.decap(s, kem, to)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, kem.Secret(z, to.context)) {
			return at("C_DeriveKey", fmt.Errorf("another secret than software has for %s: %w", kem, errShort))
		}
	}
	return nil
}

// unpaired decides what an error means to make a pair of session objects. A module that has none
// may have pairs on the token.
func (t *Token) unpaired(err error) error {
	if !errors.Is(err, errRefused) {
		return err
	}
	t.ways.untried = append(t.ways.untried, fmt.Sprintf("key agreement, because the module has no key pairs as session objects (%v)", err))
	return nil
}

// tryWrap finds the mechanism that wraps as RFC 5649 does: 40 bytes of 32, which unwrap to a key
// that makes the same MAC. A module may know a mechanism that it does not list.
func (t *Token) tryWrap(s *session) error {
	if t.have.check(using(hsm.WrapKey)) != nil || t.ways.mac == (macWay{}) {
		t.ways.wrapping = wrapWay{}
		return nil
	}
	var first error
	for _, t.ways.wrapping = range wrapWays {
		if !t.lists(t.ways.wrapping.mechanism) && t.ways.wrapping.mechanism < pkcs11.CKM_VENDOR_DEFINED {
			continue
		}
		err := t.outcome(func() error { return t.tryWrapping(s) })
		if !t.lists(t.ways.wrapping.mechanism) && err != nil && t.loggedIn() == nil {
			err = refusal{err} // under any code: the module does not claim to know the mechanism
		}
		if err == nil || !errors.Is(err, errRefused) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	t.ways.wrapping = wrapWay{}
	t.refuse(wrapPad, first)
	return nil
}

// lists reports whether the module lists a mechanism of wrapWays. t.have has the first of them also if
// the module lists another one only.
func (t *Token) lists(mechanism uint) bool {
	return t.have[mechanism] && (mechanism != wrapWays[0].mechanism || t.listsPad)
}

// tryWrapping wraps a secret, unwraps it to an HMAC key and compares the MACs of both.
func (t *Token) tryWrapping(s *session) (err error) {
	with, err := t.trialSecret(s, hsm.WrapKey, false)
	if err != nil {
		return err
	}
	defer t.destroy(s, with, &err)
	secret, err := t.trialSecret(s, hsm.MACKey, true)
	if err != nil {
		return err
	}
	defer t.destroy(s, secret, &err)
	text := []byte("countersign trial v1")
	want, err := t.native.sign(s, secret, hmacSHA256, text)
	if err != nil {
		return err
	}
	wrapped, err := t.wrapUnder(s, with, secret)
	if err != nil {
		return err
	}
	if want := t.ways.wrapping.length(); len(wrapped) != want {
		return fmt.Errorf("C_WrapKey with %s makes %d bytes of 32 to keep, not %d: %w", t.ways.wrapping.name, len(wrapped), want, errRefused)
	}
	got, err := t.macOf(s, with, wrapped, text)
	if err == nil && !bytes.Equal(got, want) {
		err = at("C_UnwrapKey with "+t.ways.wrapping.name, errDiffers)
	}
	return err
}

// macOf unwraps a secret and returns its MAC of text.
func (t *Token) macOf(s *session, with pkcs11.ObjectHandle, wrapped, text []byte) (mac []byte, err error) {
	secret, err := t.unwrapUnder(s, with, wrapped, t.sessionSecret(t.ways.mac.keyType, false, pkcs11.CKA_SIGN))
	if err != nil {
		return nil, at("C_UnwrapKey with "+t.ways.wrapping.name, err)
	}
	defer t.destroy(s, secret, &err)
	return t.native.sign(s, secret, hmacSHA256, text)
}

// tryImport finds out where a password verifier can be imported.
func (t *Token) tryImport(s *session) error {
	if t.have.check(using(hsm.WrapKey)) != nil || t.have.check(using(hsm.DeriveP256)) != nil {
		t.ways.importer = importNone
		return nil
	}
	if len(t.ways.untried) > 0 {
		if !t.have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA] {
			t.ways.importer = importWorker
		}
		return nil
	}
	own, point, err := t.trialPair(s)
	if err != nil {
		return err
	}
	defer own.end(new(error))
	with, err := t.trialSecret(s, hsm.WrapKey, false)
	if err != nil {
		return err
	}
	defer t.destroy(s, with, new(error))
	i, want, err := trialImport(point)
	if err != nil {
		return err
	}
	var first error
	for _, t.ways.importer = range []importWay{importInside, importWorker} {
		if t.ways.importer == importInside && (!t.have[pkcs11.CKM_AES_ECB_ENCRYPT_DATA] || t.ways.wrapping.form != 0) {
			continue
		}
		err := t.outcome(func() error {
			kept, err := t.importVerifier(s, []object{{handle: own.private}, {handle: with}}, i)
			if err != nil {
				return err
			}
			got, err := t.macOf(s, with, kept, nil)
			if err == nil && !bytes.Equal(got, want) {
				err = at("importing a verifier", errDiffers)
			}
			return err
		})
		switch {
		case err == nil && first != nil:
			t.refuse(encryptData, first)
			return nil
		case err == nil || !errors.Is(err, errRefused):
			return err
		case first == nil:
			first = err
		}
	}
	t.ways.importer = importNone
	t.refuse(encryptData, first)
	return nil
}

// trialImport wraps a secret for the key with this point, as a phone does, and returns the MAC of
// nothing under it.
func trialImport(point []byte) (i hsm.Import, mac []byte, err error) {
	recipient, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return i, nil, err
	}
	ephemeral, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return i, nil, err
	}
	z, err := ephemeral.ECDH(recipient)
	if err != nil {
		return i, nil, err
	}
	i = hsm.Import{Ephemeral: ephemeral.PublicKey(), Context: sha256.Sum256([]byte("countersign trial v1"))}
	kek, err := kwp.KEK(z, i.Context)
	if err != nil {
		return i, nil, err
	}
	secret := random(check.SecretLen)
	i.Wrapped, err = kwp.Wrap(kek, secret)
	return i, hmac.New(sha256.New, secret).Sum(nil), err
}
