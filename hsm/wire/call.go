package wire

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"fmt"

	"countersign/hsm"
	"countersign/hsm/internal/check"
)

// Call does what a request asks for and returns the payload of its response.
func Call(ctx context.Context, t hsm.Token, q Request) ([]byte, error) {
	switch q.Op {
	case opSign:
		if len(q.Payload) == 0 {
			return nil, fmt.Errorf("sign: no algorithm: %w", hsm.ErrInput)
		}
		return t.Sign(ctx, q.Key, hsm.Algorithm(q.Payload[0]), q.Payload[1:])
	case opDecap:
		in := reader{rest: q.Payload}
		kem := hsm.KEM(in.u8())
		enc, err := ecdh.P256().NewPublicKey(in.rest)
		if err != nil {
			return nil, fmt.Errorf("decap: %v: %w", err, hsm.ErrInput)
		}
		return t.Decap(ctx, q.Key, kem, enc)
	case opMAC:
		return t.MAC(ctx, q.Key, q.Payload)
	case opImport:
		return parsed(parseImport, q, func(i hsm.Import) ([]byte, error) { return t.Import(ctx, i) })
	case opMACWrapped:
		in := reader{rest: q.Payload}
		wrapped := in.bytes(int(in.u8()))
		if in.bad {
			return nil, fmt.Errorf("mac-wrapped: no wrapped secret: %w", hsm.ErrInput)
		}
		return t.MACWrapped(ctx, q.Key, wrapped, in.rest)
	case opRewrap:
		return parsed(parseRewrap, q, func(r hsm.Rewrap) ([]byte, error) { return t.Rewrap(ctx, r) })
	case opDestroy:
		return nil, t.Destroy(ctx, q.Key)
	case opStoreCertificate:
		return parsed(parseCertificate, q, func(c hsm.Certificate) ([]byte, error) { return nil, t.StoreCertificate(ctx, c) })
	case opKnow:
		return parsed(parseKnown, q, func(publics [][]byte) ([]byte, error) { return nil, t.Know(ctx, publics) })
	case opKeys, opForeign, opCertificates, opObjects:
		return list(ctx, t, q.Op)
	default:
		k, err := newKey(ctx, t, q)
		return appendKey(nil, k), err
	}
}

// parsed calls do with the arguments that parse finds in a request.
func parsed[T any](parse func(Request) (T, error), q Request, do func(T) ([]byte, error)) ([]byte, error) {
	arguments, err := parse(q)
	if err != nil {
		return nil, err
	}
	return do(arguments)
}

func list(ctx context.Context, t hsm.Token, op Op) ([]byte, error) {
	switch op {
	case opCertificates:
		certs, err := t.Certificates(ctx)
		return appendAll(appendCertificate, certs), err
	case opObjects:
		objects, err := t.Objects(ctx)
		return appendAll(appendObject, objects), err
	case opForeign:
		keys, err := t.Foreign(ctx)
		return appendAll(appendKey, keys), err
	default:
		keys, err := t.Keys(ctx)
		return appendAll(appendKey, keys), err
	}
}

func appendAll[T any](one func([]byte, T) []byte, all []T) (out []byte) {
	for _, v := range all {
		out = one(out, v)
	}
	return out
}

// newKey does an operation whose result is a key on the token.
func newKey(ctx context.Context, t hsm.Token, q Request) (hsm.Key, error) {
	switch q.Op {
	case opRestore:
		r, err := parseRestore(q)
		if err != nil {
			return hsm.Key{}, err
		}
		return t.Restore(ctx, r)
	case opAdopt:
		spec, private, err := parseAdopt(q.Payload)
		if err != nil {
			return hsm.Key{}, err
		}
		return t.Adopt(ctx, spec, private)
	default:
		spec, err := parseSpec(q.Payload)
		if err != nil {
			return hsm.Key{}, err
		}
		return t.Generate(ctx, spec)
	}
}

func parseImport(q Request) (hsm.Import, error) {
	in, i := reader{rest: q.Payload}, hsm.Import{Enrol: q.Key}
	copy(i.Wrap[:], in.bytes(len(i.Wrap)))
	point := in.bytes(check.PointLen)
	copy(i.Context[:], in.bytes(len(i.Context)))
	i.Wrapped = in.rest
	var err error
	if i.Ephemeral, err = ecdh.P256().NewPublicKey(point); err != nil || in.bad {
		return i, fmt.Errorf("import: %v: %w", err, hsm.ErrInput)
	}
	return i, nil
}

func parseKnown(q Request) (publics [][]byte, err error) {
	in := reader{rest: q.Payload}
	for len(in.rest) > 0 && !in.bad {
		publics = append(publics, bytes.Clone(in.text()))
	}
	return publics, in.input(opKnow)
}

func parseRewrap(q Request) (hsm.Rewrap, error) {
	in, r := reader{rest: q.Payload}, hsm.Rewrap{From: q.Key}
	copy(r.To[:], in.bytes(len(r.To)))
	r.Wrapped, in.rest = in.rest, nil
	return r, in.input(opRewrap)
}

func parseName(in *reader) hsm.KeySpec {
	return hsm.KeySpec{Usage: hsm.Usage(in.u8()), Label: string(in.text())}
}

func parseSpec(b []byte) (hsm.KeySpec, error) {
	in := reader{rest: b}
	spec := parseName(&in)
	for range in.u8() {
		point, err := ecdh.P256().NewPublicKey(in.bytes(check.PointLen))
		if err != nil {
			return spec, fmt.Errorf("generate: %v: %w", err, hsm.ErrInput)
		}
		spec.Recipients = append(spec.Recipients, point)
	}
	return spec, in.input(opGenerate)
}

func parseRestore(q Request) (hsm.Restore, error) {
	in := reader{rest: q.Payload}
	r := hsm.Restore{Spec: parseName(&in), With: q.Key}
	copy(r.ID[:], in.bytes(len(r.ID)))
	if public := in.text(); len(public) > 0 {
		r.Public = bytes.Clone(public)
	}
	r.Sealed, in.rest = in.rest, nil
	return r, in.input(opRestore)
}

func parseAdopt(b []byte) (hsm.KeySpec, *ecdh.PrivateKey, error) {
	in := reader{rest: b}
	spec := parseName(&in)
	private, err := ecdh.P256().NewPrivateKey(in.rest)
	if err != nil {
		return spec, nil, fmt.Errorf("adopt: %v: %w", err, hsm.ErrInput)
	}
	in.rest = nil
	return spec, private, in.input(opAdopt)
}

func parseCertificate(q Request) (hsm.Certificate, error) {
	in := reader{rest: q.Payload}
	c := hsm.Certificate{Key: q.Key, Label: string(in.text())}
	c.DER, in.rest = in.rest, nil
	return c, in.input(opStoreCertificate)
}

// input is done for the arguments of a request: an error is the input of a caller.
func (r *reader) input(op Op) error {
	if err := r.done(); err != nil {
		return fmt.Errorf("%s: %v: %w", op, err, hsm.ErrInput)
	}
	return nil
}
