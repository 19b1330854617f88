package protocol

import "crypto/sha256"

// The Merkle tree of RFC 9162 §2.1 over SHA-256. Leaves and nodes hash with
// different prefixes, so that no node passes for a leaf.

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

// MerkleRoot is the Merkle tree hash of RFC 9162 §2.1.1.
func MerkleRoot(entries [][]byte) Hash {
	root, _ := merkleTree(entries)
	return root
}

// InclusionPaths gives for each entry its inclusion path, RFC 9162 §2.1.3.1,
// from the leaf upwards.
func InclusionPaths(entries [][]byte) [][]Hash {
	_, paths := merkleTree(entries)
	return paths
}

// merkleTree pairs the nodes of each level; one left over goes up as it is, which
// is the tree of RFC 9162. at is where the subtree of each entry stands in its level.
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

// Inclusion says where in a tree an entry is. In CBOR it is
// [tree size, leaf index, [path]], RFC 9942.
type Inclusion struct {
	_     struct{} `cbor:",toarray"`
	Size  uint64
	Index uint64
	Path  []Hash
}

// VerifyInclusion checks that entry is in the tree of this root, RFC 9162
// §2.1.3.2: CodeCertificate if not.
func VerifyInclusion(entry []byte, in Inclusion, root Hash) error {
	computed, err := in.rootOf(entry)
	if err != nil {
		return err
	}
	if computed != root {
		return certificateError("entry is not in the tree")
	}
	return nil
}

// rootOf computes the root that the path leads to. The names are those of the RFC.
func (in Inclusion) rootOf(entry []byte) (Hash, error) {
	if in.Index >= in.Size {
		return Hash{}, certificateError("leaf %d of a tree of %d", in.Index, in.Size)
	}
	fn, sn, r := in.Index, in.Size-1, leafHash(entry)
	for _, p := range in.Path {
		if sn == 0 {
			return Hash{}, certificateError("inclusion path is too long")
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
		return Hash{}, certificateError("inclusion path is too short")
	}
	return r, nil
}
