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
	case Keys, Certificates:
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

func (s *server) list(ctx context.Context, op Op) (out []byte, err error) {
	if op == Certificates {
		certs, err := s.token.Certificates(ctx)
		for _, c := range certs {
			out = appendCertificate(out, c)
		}
		return out, err
	}
	keys, err := s.token.Keys(ctx)
	for _, k := range keys {
		out = appendKey(out, k)
	}
	return out, err
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
