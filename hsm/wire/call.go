package wire

import (
	"context"
	"crypto/ecdh"
	"fmt"

	"countersign/hsm"
)

// call does what a request asks for and returns the payload of its answer.
func (s *server) call(ctx context.Context, q Request) ([]byte, error) {
	switch q.Op {
	case Sign:
		alg, input := parseSign(q.Payload)
		return s.token.Sign(ctx, q.Key, alg, input)
	case Derive:
		peer, err := ecdh.P256().NewPublicKey(q.Payload)
		if err != nil {
			return nil, fmt.Errorf("derive: %v: %w", err, hsm.ErrInput)
		}
		return s.token.Derive(ctx, q.Key, peer)
	case MAC:
		return s.token.MAC(ctx, q.Key, q.Payload)
	case Import:
		i, err := parseImport(q)
		if err != nil {
			return nil, err
		}
		return s.token.Import(ctx, i)
	case MACWrapped:
		wrapped, data := parseMACWrapped(q.Payload)
		return s.token.MACWrapped(ctx, q.Key, wrapped, data)
	case Rewrap:
		r, err := parseRewrap(q)
		if err != nil {
			return nil, err
		}
		return s.token.Rewrap(ctx, r)
	case Encrypt, Decrypt:
		return s.crypt(ctx, q)
	case Destroy:
		return nil, s.token.Destroy(ctx, q.Key)
	case StoreCertificate:
		c, err := parseCertificate(q)
		if err != nil {
			return nil, err
		}
		return nil, s.token.StoreCertificate(ctx, c)
	case Keys, Certificates, Objects:
		return s.list(ctx, q.Op)
	default:
		k, err := s.keep(ctx, q)
		return appendKey(nil, k), err
	}
}

func (s *server) crypt(ctx context.Context, q Request) ([]byte, error) {
	text, aad, err := parseCrypt(q.Payload)
	if err != nil {
		return nil, err
	}
	if q.Op == Encrypt {
		return s.token.Encrypt(ctx, q.Key, text, aad)
	}
	return s.token.Decrypt(ctx, q.Key, text, aad)
}

func (s *server) list(ctx context.Context, op Op) ([]byte, error) {
	switch op {
	case Certificates:
		certs, err := s.token.Certificates(ctx)
		return appendAll(appendCertificate, certs), err
	case Objects:
		objects, err := s.token.Objects(ctx)
		return appendAll(appendObject, objects), err
	default:
		keys, err := s.token.Keys(ctx)
		return appendAll(appendKey, keys), err
	}
}

func appendAll[T any](one func([]byte, T) []byte, all []T) (out []byte) {
	for _, v := range all {
		out = one(out, v)
	}
	return out
}

// keep does what ends in a new key.
func (s *server) keep(ctx context.Context, q Request) (hsm.Key, error) {
	switch q.Op {
	case Restore:
		r, err := parseRestore(q)
		if err != nil {
			return hsm.Key{}, err
		}
		return s.token.Restore(ctx, r)
	case Adopt:
		spec, private, err := parseAdopt(q.Payload)
		if err != nil {
			return hsm.Key{}, err
		}
		return s.token.Adopt(ctx, spec, private)
	default:
		spec, err := parseSpec(q.Payload)
		if err != nil {
			return hsm.Key{}, err
		}
		return s.token.Generate(ctx, spec)
	}
}
