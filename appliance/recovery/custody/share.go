package custody

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cloudflare/circl/secretsharing"

	"countersign/protocol"
)

// Share is one custodian's part of a backup key. Its file holds this text, encrypted:
//
//	countersign backup share v1
//	key 02…                       66 hexadecimal digits: the public half, compressed
//	share 1 of 3
//	threshold 2
//	commitment 03…                as key, for each further coefficient: threshold − 1 lines
//	value 5f…                     64 hexadecimal digits: the secret
//
// and nothing else; each line ends with a newline.
type Share struct {
	Number, Of  int                  // 1 to Of
	Commitments []protocol.PublicKey // to the coefficients; the first is the public half of the key
	value       [32]byte
}

const shareTitle = "countersign backup share v1"

// Key returns the public half of the backup key.
func (s Share) Key() protocol.PublicKey { return s.Commitments[0] }

// Threshold returns how many shares recover the key.
func (s Share) Threshold() int { return len(s.Commitments) }

// String describes the share without its value.
func (s Share) String() string {
	return fmt.Sprintf("share %d of %d of backup key %s, %d are needed", s.Number, s.Of, s.Key(), s.Threshold())
}

// Format writes String for every verb.
func (s Share) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// text returns the text of the share's file.
func (s Share) text() []byte {
	var b []byte
	b = fmt.Appendf(b, "%s\nkey %s\nshare %d of %d\nthreshold %d\n", shareTitle, s.Key(), s.Number, s.Of, s.Threshold())
	for _, c := range s.Commitments[1:] {
		b = fmt.Appendf(b, "commitment %s\n", c)
	}
	return fmt.Appendf(b, "value %x\n", s.value[:])
}

// ParseShare parses the text of a share and verifies the value with the commitments. Errors
// wrap [ErrShare] and never contain a line of the text.
func ParseShare(text []byte) (s Share, err error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) < 6 || len(lines) > 6+MaxShares || lines[0] != shareTitle {
		return s, fmt.Errorf("unexpected format: %w", ErrShare)
	}
	var threshold int
	if _, err := fmt.Sscanf(lines[2]+" "+lines[3], "share %d of %d threshold %d", &s.Number, &s.Of, &threshold); err != nil {
		return s, fmt.Errorf("numbers of the share: %w", ErrShare)
	}
	scheme := Scheme{Threshold: threshold, Shares: s.Of}
	if scheme.Check() != nil || s.Number < 1 || s.Number > s.Of || len(lines) != 5+threshold {
		return s, fmt.Errorf("share %d of %d with a threshold of %d: %w", s.Number, s.Of, threshold, ErrShare)
	}
	points := append([]string{strings.Replace(lines[1], "key ", "commitment ", 1)}, lines[4:3+threshold]...)
	for _, line := range points {
		c, err := ParsePoint(strings.TrimPrefix(line, "commitment "))
		if err != nil {
			return s, fmt.Errorf("points of the share: %w", ErrShare)
		}
		s.Commitments = append(s.Commitments, c)
	}
	value, err := hex.DecodeString(strings.TrimPrefix(lines[3+threshold], "value "))
	if err != nil || copy(s.value[:], value) != len(value) || !slices.Equal(s.text(), text) {
		return s, fmt.Errorf("share %s: its text is not canonical: %w", strconv.Itoa(s.Number), ErrShare)
	}
	clear(value)
	_, err = s.scalars()
	return s, err
}

// sameSplit reports whether shares belong to one split.
func (s Share) sameSplit(other Share) bool {
	return s.Of == other.Of && slices.Equal(s.Commitments, other.Commitments)
}

// scalars converts and verifies the share (Feldman 1987).
func (s Share) scalars() (one secretsharing.Share, err error) {
	one.ID, one.Value = p256.NewScalar().SetUint64(uint64(s.Number)), p256.NewScalar()
	if err := one.Value.UnmarshalBinary(s.value[:]); err != nil {
		return one, fmt.Errorf("share %d: %w", s.Number, ErrShare)
	}
	var commitment secretsharing.SecretCommitment
	for _, c := range s.Commitments {
		e := p256.NewElement()
		if err := e.UnmarshalBinary(c[:]); err != nil || e.IsIdentity() {
			return one, fmt.Errorf("share %d: a commitment is not a point on P-256: %w", s.Number, ErrShare)
		}
		commitment = append(commitment, e)
	}
	if !secretsharing.Verify(uint(s.Threshold()-1), one, commitment) {
		return one, fmt.Errorf("share %d does not fit backup key %s: %w", s.Number, s.Key(), ErrShare)
	}
	return one, nil
}
