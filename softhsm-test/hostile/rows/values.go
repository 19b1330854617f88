package rows

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
)

func equal(a, b any) bool {
	x, isBytes := a.([]byte)
	y, both := b.([]byte)
	if isBytes || both {
		return isBytes && both && bytes.Equal(x, y)
	}
	return a == b
}

// zero is nothing of the same type: of a blob also one of zeros, since its length may be
// looked at.
func zero(v any) any {
	switch v := v.(type) {
	case int64:
		return int64(0)
	case string:
		if strings.HasPrefix(v, "[") {
			return "[]"
		}
		return ""
	case []byte:
		return make([]byte, len(v))
	default:
		return nil
	}
}

// flip changes the lowest bit of the middle, of text a letter to another letter.
func flip(v any) any {
	switch v := v.(type) {
	case int64:
		return v ^ 1
	case string:
		if v == "" {
			return "x"
		}
		b := []byte(v)
		b[len(b)/2] ^= 1
		return string(b)
	case []byte:
		if len(v) == 0 {
			return []byte{1}
		}
		b := bytes.Clone(v)
		b[len(b)/2] ^= 1
		return b
	default:
		return nil
	}
}

// next is one more; of a blob, its last byte; of text, one letter longer.
func next(v any) any {
	switch v := v.(type) {
	case int64:
		return v + 1
	case string:
		return v + "x"
	case []byte:
		if len(v) == 0 {
			return []byte{0}
		}
		b := bytes.Clone(v)
		b[len(b)-1]++
		return b
	default:
		return nil
	}
}

// words of a value, short.
func words(v any) string {
	switch v := v.(type) {
	case []byte:
		return hex.EncodeToString(v[:min(len(v), 4)])
	case string:
		return v[:min(len(v), 16)]
	default:
		return fmt.Sprint(v)
	}
}

// literal is a value in SQL, where no argument can be.
func literal(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case []byte:
		return "x'" + hex.EncodeToString(v) + "'"
	case string:
		return "'" + strings.ReplaceAll(v, "'", "''") + "'"
	default:
		return fmt.Sprint(v)
	}
}

// filled puts literals in the place of question marks.
func filled(text string, args []any) string {
	for _, v := range args {
		text = strings.Replace(text, "?", literal(v), 1)
	}
	return text
}
