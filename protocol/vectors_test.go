package protocol_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"countersign/protocol"
)

// vector is one entry of a file in testdata. Out lists the members to compare; Expect is "ok" or the
// number of a code.
type vector struct {
	Name    string                     `json:"name"`
	Op      string                     `json:"op"`
	Comment string                     `json:"comment"`
	Expect  any                        `json:"expect"`
	In      json.RawMessage            `json:"in"`
	Out     map[string]json.RawMessage `json:"out"`
}

// ops maps each op to its implementation. Test files add theirs in init. The result is converted to
// JSON and may have more members than the vector's out.
var ops = map[string]func(in json.RawMessage) (any, error){}

// decoders maps each `what` of the op "decode" to its implementation, which returns the decoded map
// as a JSON object with its integer keys as strings.
var decoders = map[string]func(cbor []byte) (any, error){}

func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vector files: %v", err)
	}
	for _, file := range files {
		vectors := loadVectors(t, filepath.Base(file))
		t.Run(filepath.Base(file), func(t *testing.T) {
			for _, v := range vectors {
				t.Run(v.Op+"/"+v.Name, v.check)
			}
		})
	}
}

// loadVectors reads testdata/file.
func loadVectors(t testing.TB, file string) []vector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Vectors []vector }
	if err := decodeJSON(data, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) == 0 {
		t.Fatalf("%s has no vectors", file)
	}
	return doc.Vectors
}

func (v vector) check(t *testing.T) {
	if err := v.run(); err != nil {
		t.Errorf("%v: %s", err, v.Comment)
	}
}

// run returns the difference between the result and the vector's expectation.
func (v vector) run() error {
	op, ok := ops[v.Op]
	if !ok {
		return fmt.Errorf("no op %q", v.Op)
	}
	out, err := op(v.In)
	if v.Expect == "ok" {
		if err != nil {
			return fmt.Errorf("unexpected error: %w", err)
		}
		return v.compare(out)
	}
	code, found := protocol.CodeOf(err)
	if want := fmt.Sprint(v.Expect); !found || strconv.Itoa(int(code)) != want {
		return fmt.Errorf("got %v (code %d), want code %s", err, code, want)
	}
	return nil
}

// compare checks every member of the vector's out.
func (v vector) compare(out any) error {
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	var got map[string]json.RawMessage
	if err := decodeJSON(text, &got); err != nil {
		return err
	}
	for name, want := range v.Out {
		var w, g any
		if err := decodeJSON(want, &w); err != nil {
			return err
		}
		if err := decodeJSON(got[name], &g); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if !reflect.DeepEqual(w, g) {
			return fmt.Errorf("%s is\n%s, want\n%s", name, got[name], want)
		}
	}
	return nil
}

// TestVectorRunnerFails runs vectors that are wrong.
func TestVectorRunnerFails(t *testing.T) {
	good := loadVectors(t, "derive.json")[0]
	if err := good.run(); err != nil {
		t.Fatal(err)
	}
	changed := good
	changed.Out = map[string]json.RawMessage{"chal": json.RawMessage(`"081b33679bfb4c313b3430057bae98df"`)}
	missing := good
	missing.Out = map[string]json.RawMessage{"no such member": json.RawMessage(`1`)}
	code := good
	code.Expect = json.Number("1")
	op := good
	op.Op = "no such op"
	for name, v := range map[string]vector{"out": changed, "member": missing, "code": code, "op": op} {
		if v.run() == nil {
			t.Errorf("a vector with another %s passes", name)
		}
	}
}

// decodeJSON decodes without rounding numbers.
func decodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("JSON %.80s: %w", data, err)
	}
	return nil
}

// hexBytes is a byte string that JSON carries as lower-case hexadecimal.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func init() {
	ops["decode"] = func(in json.RawMessage) (any, error) {
		var v struct {
			What string
			CBOR hexBytes
		}
		if err := json.Unmarshal(in, &v); err != nil {
			return nil, err
		}
		decode, ok := decoders[v.What]
		if !ok {
			return nil, fmt.Errorf("no decoder for %q", v.What)
		}
		value, err := decode(v.CBOR)
		return map[string]any{"value": value}, err
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
