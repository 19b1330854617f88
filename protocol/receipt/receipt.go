package receipt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"countersign/protocol"
	"countersign/protocol/cbor"
	"countersign/protocol/internal/cose"
	"countersign/protocol/internal/domain"
	"countersign/protocol/internal/strict"
)

// The Merkle tree of RFC 9162 §2.1 over SHA-256. Leaves and nodes hash with different prefixes, so
// that a node cannot pass for a leaf.

// Hash is a node of the tree.
type Hash [sha256.Size]byte

const (
	leafPrefix = 0
	nodePrefix = 1
)

func leafHash(entry []byte) Hash {
	h := sha256.New()
	h.Write([]byte{leafPrefix})
	h.Write(entry)
	return Hash(h.Sum(nil))
}

func nodeHash(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = nodePrefix
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// MerkleRoot returns the Merkle tree hash of RFC 9162 §2.1.1.
func MerkleRoot(entries [][]byte) Hash {
	root, _ := merkleTree(entries)
	return root
}

// InclusionPaths returns the inclusion path of each entry, RFC 9162 §2.1.3.1, from the leaf upwards.
func InclusionPaths(entries [][]byte) [][]Hash {
	_, paths := merkleTree(entries)
	return paths
}

// merkleTree pairs the nodes of each level. The last node of an odd level moves up unchanged, as in
// RFC 9162. at is the position of each entry's subtree in its level.
func merkleTree(entries [][]byte) (root Hash, paths [][]Hash) {
	if len(entries) == 0 {
		return sha256.Sum256(nil), nil
	}
	level := make([]Hash, len(entries))
	paths = make([][]Hash, len(entries))
	at := make([]int, len(entries))
	for i, e := range entries {
		level[i], paths[i], at[i] = leafHash(e), []Hash{}, i
	}
	for len(level) > 1 {
		for i := range at {
			if sibling := at[i] ^ 1; sibling < len(level) {
				paths[i] = append(paths[i], level[sibling])
			}
			at[i] /= 2
		}
		level = nextLevel(level)
	}
	return level[0], paths
}

func nextLevel(level []Hash) []Hash {
	next := make([]Hash, 0, (len(level)+1)/2)
	for i := 0; i+1 < len(level); i += 2 {
		next = append(next, nodeHash(level[i], level[i+1]))
	}
	if len(level)%2 == 1 {
		next = append(next, level[len(level)-1])
	}
	return next
}

// Inclusion is the position of an entry in a tree. In CBOR it is [tree size, leaf index, [path]],
// RFC 9942.
type Inclusion struct {
	_     struct{} `cbor:",toarray"`
	Size  uint64
	Index uint64
	Path  []Hash
}

// VerifyInclusion returns CodeCertificate unless entry is in the tree of this root, RFC 9162
// §2.1.3.2.
func VerifyInclusion(entry []byte, in Inclusion, root Hash) error {
	computed, err := in.rootOf(entry)
	if err != nil {
		return err
	}
	if computed != root {
		return protocol.CodeCertificate.Errorf("entry is not in the tree")
	}
	return nil
}

// rootOf returns the root that the path leads to. The names are from the RFC.
func (in Inclusion) rootOf(entry []byte) (Hash, error) {
	if in.Index >= in.Size {
		return Hash{}, protocol.CodeCertificate.Errorf("leaf %d of a tree of %d", in.Index, in.Size)
	}
	fn, sn, r := in.Index, in.Size-1, leafHash(entry)
	for _, p := range in.Path {
		if sn == 0 {
			return Hash{}, protocol.CodeCertificate.Errorf("inclusion path is too long")
		}
		if fn&1 == 1 || fn == sn {
			r = nodeHash(p, r)
			for fn&1 == 0 && fn != 0 {
				fn, sn = fn>>1, sn>>1
			}
		} else {
			r = nodeHash(r, p)
		}
		fn, sn = fn>>1, sn>>1
	}
	if sn != 0 {
		return Hash{}, protocol.CodeCertificate.Errorf("inclusion path is too short")
	}
	return r, nil
}

// receipt is a COSE Receipt, PROTOCOL.md §6 and RFC 9942: the signature over the
// root of a tree, with the inclusion proof of one leaf.
type receipt struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected receiptHeader
	Payload     []byte // detached: always nil
	Signature   []byte
}

type receiptHeader struct {
	Kid    []byte        `cbor:"4,keyasint"`
	Proofs receiptProofs `cbor:"396,keyasint"`
}

type receiptProofs struct {
	Inclusion [][]byte `cbor:"-1,keyasint"`
}

// batched is the batch form: [receipt, leaf entry].
type batched struct {
	_       struct{} `cbor:",toarray"`
	Receipt []byte
	Entry   []byte
}

// protectedReceipt is {1: -7, 395: 1}: ES256, RFC9162_SHA256.
var protectedReceipt = []byte{0xA2, 0x01, 0x26, 0x19, 0x01, 0x8B, 0x01}

// batchHead is the first byte of the batch form, an array of two. A plain COSE_Sign1 is an array of
// four.
const batchHead = 0x82

// signTree signs the root of the tree of entries once and returns the batch form of each.
func signTree(ctx context.Context, signer protocol.DigestSigner, aad string, kid []byte, entries [][]byte) ([][]byte, error) {
	root, paths := merkleTree(entries)
	digest := sha256.Sum256(cose.Structure(protectedReceipt, aad, root[:]))
	sig, err := signer.SignDigest(ctx, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing a tree of %d: %w", len(entries), err)
	}
	out := make([][]byte, len(entries))
	for i, entry := range entries {
		proof := cbor.Marshal(Inclusion{Size: uint64(len(entries)), Index: uint64(i), Path: paths[i]})
		out[i] = cbor.Marshal(batched{Entry: entry, Receipt: cbor.Marshal(receipt{
			Protected:   protectedReceipt,
			Unprotected: receiptHeader{Kid: kid, Proofs: receiptProofs{Inclusion: [][]byte{proof}}},
			Signature:   sig,
		})})
	}
	return out, nil
}

// SignAll signs decisions with one signature of the key `decision` of this epoch. A single one gets
// the plain form.
func SignAll(ctx context.Context, signer protocol.DigestSigner, epoch uint64, decisions []Decision) ([][]byte, error) {
	switch len(decisions) {
	case 0:
		return nil, nil
	case 1:
		b, err := Sign(ctx, signer, epoch, decisions[0])
		if err != nil {
			return nil, err
		}
		return [][]byte{b}, nil
	}
	entries := make([][]byte, len(decisions))
	for i, d := range decisions {
		entries[i] = d.Marshal()
	}
	return signTree(ctx, signer, domain.Decision, cose.Kid(epoch), entries)
}

// Leaf is a leaf of the signing API: deterministic CBOR [16 random bytes, document]. The random
// bytes keep a receipt from revealing other leaves.
type Leaf struct {
	_        struct{} `cbor:",toarray"`
	Random   [16]byte
	Document []byte
}

// SignDocuments signs documents of the signing API with one signature of one of its own keys, never
// of `decision`. The external_aad is empty, for stock verifiers.
func SignDocuments(ctx context.Context, signer protocol.DigestSigner, epoch uint64, leaves []Leaf) ([][]byte, error) {
	entries := make([][]byte, len(leaves))
	for i, l := range leaves {
		l.Document = strict.NonNil(l.Document)
		entries[i] = cbor.Marshal(l)
	}
	if len(entries) == 0 {
		return nil, nil
	}
	return signTree(ctx, signer, "", cose.Kid(epoch), entries)
}

// VerifyDocument verifies a [receipt, leaf] of the signing API under its key and returns the
// document. Errors are CodeFormat or CodeCertificate.
func VerifyDocument(b []byte, key protocol.PublicKey) (document []byte, err error) {
	p, err := parseBatched(b)
	if err != nil {
		return nil, err
	}
	var leaf Leaf
	if err := strict.Item(p.payload, &leaf); err != nil {
		return nil, err
	}
	if leaf.Document == nil {
		return nil, protocol.CodeFormat.Errorf("leaf has no document")
	}
	return leaf.Document, p.verify(key, "")
}

// signed is a well-formed, unverified decision or leaf in either form.
type signed struct {
	payload   []byte
	kid       byte
	plain     cose.Sign1
	inclusion *Inclusion // nil: plain form
	signature []byte
}

func parseSigned(b []byte) (signed, error) {
	if len(b) != 0 && b[0] == batchHead {
		return parseBatched(b)
	}
	s, kid, err := cose.Parse(b, true)
	return signed{payload: s.Payload, kid: kid, plain: s}, err
}

func parseBatched(b []byte) (signed, error) {
	var w batched
	if err := strict.Item(b, &w); err != nil {
		return signed{}, err
	}
	var r receipt
	if err := strict.Item(w.Receipt, &r); err != nil {
		return signed{}, err
	}
	header := r.Unprotected
	if !bytes.Equal(r.Protected, protectedReceipt) || r.Payload != nil || len(r.Signature) != protocol.SignatureSize {
		return signed{}, protocol.CodeFormat.Errorf("receipt is not a detached ES256 signature of an RFC 9162 tree")
	}
	if len(header.Kid) != 1 || len(header.Proofs.Inclusion) != 1 {
		return signed{}, protocol.CodeFormat.Errorf("receipt: want one kid byte and one inclusion proof")
	}
	var in Inclusion
	if err := strict.Item(header.Proofs.Inclusion[0], &in); err != nil {
		return signed{}, err
	}
	if in.Path == nil {
		return signed{}, protocol.CodeFormat.Errorf("inclusion proof has no path")
	}
	return signed{payload: w.Entry, kid: header.Kid[0], inclusion: &in, signature: r.Signature}, nil
}

// verify returns CodeCertificate unless signature and inclusion are valid.
func (s signed) verify(key protocol.PublicKey, aad string) error {
	if s.inclusion == nil {
		if !s.plain.Verify(key, aad) {
			return protocol.CodeCertificate.Errorf("signature is invalid")
		}
		return nil
	}
	root, err := s.inclusion.rootOf(s.payload)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(cose.Structure(protectedReceipt, aad, root[:]))
	if !key.VerifyDigest(digest[:], s.signature) {
		return protocol.CodeCertificate.Errorf("signature over the tree is invalid")
	}
	return nil
}
