package shim_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign/hsm/hsmtest"
	"countersign/softhsm-test/shim"
	"countersign/softhsm-test/shim/shimtest"
)

// bin is the directory of the module.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if pin := os.Getenv(probeVariable); pin != "" {
		return runProbes(os.Args[1], pin)
	}
	dir, err := os.MkdirTemp("", "faultshim-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }() // at worst it stays in the temporary directory
		bin, err = dir, shimtest.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = hsmtest.RemoveWorker() }() // likewise
	return m.Run()
}

// bed is a token behind the shim, with one P-256 key.
type bed struct {
	*testing.T
	shim.Shim
	hsm hsmtest.SoftHSM
	key *ecdsa.PublicKey
}

func newBed(t *testing.T) *bed {
	t.Helper()
	s, err := shim.New(bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{T: t, Shim: s, hsm: hsmtest.NewSoftHSM(t)}
	b.hsm.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--usage-sign")
	der := filepath.Join(t.TempDir(), "key.der")
	b.hsm.Tool(t, "--read-object", "--type", "pubkey", "--id", "01", "--output-file", der)
	raw, err := os.ReadFile(der)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	b.key = key.(*ecdsa.PublicKey)
	return b
}

// set replaces the rules.
func (b *bed) set(rules ...string) {
	b.Helper()
	if err := b.Set(rules...); err != nil {
		b.Fatal(err)
	}
}

// counted returns the counts of a step.
func (b *bed) counted(step func()) shim.Counts {
	b.Helper()
	before := b.read()
	step()
	return b.read().Minus(before)
}

func (b *bed) read() shim.Counts {
	b.Helper()
	c, err := b.Counts()
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// ran is the result of pkcs11-tool.
type ran struct {
	text   string // of both outputs
	out    []byte // the file it wrote
	took   time.Duration
	code   int
	signal syscall.Signal // 0: none
}

// tool runs pkcs11-tool on the token through the shim. PIN "": not logged in.
func (b *bed) tool(pin string, in []byte, args ...string) ran {
	b.Helper()
	dir := b.TempDir()
	input, output := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(input, in, 0o600); err != nil {
		b.Fatal(err)
	}
	args = append([]string{"--module", b.Module, "--token-label", b.hsm.Label}, args...)
	if pin != "" {
		args = append(args, "--login", "--pin", pin)
	}
	if in != nil {
		args = append(args, "--input-file", input, "--output-file", output)
	}
	cmd := exec.Command("pkcs11-tool", args...)
	cmd.Env = append(append(os.Environ(), b.hsm.Env()), b.Env()...)
	begun := time.Now()
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		b.Fatal(err)
	}
	r := ran{text: string(text), took: time.Since(begun), code: cmd.ProcessState.ExitCode()}
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		r.signal = status.Signal()
	}
	r.out, _ = os.ReadFile(output) // none, if it failed
	return r
}

func (b *bed) sign(digest [32]byte) ran {
	b.Helper()
	return b.tool(b.hsm.PIN, digest[:], "--sign", "--mechanism", "ECDSA", "--id", "01")
}

func (b *bed) verifies(digest [32]byte, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	return ecdsa.Verify(b.key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

func newDigest() (d [32]byte) {
	_, _ = rand.Read(d[:]) // never fails, crypto/rand
	return d
}

// TestActions observes each action once, from outside.
func TestActions(t *testing.T) {
	b := newBed(t)
	other := func(d [32]byte) [32]byte {
		d[0] ^= 1
		return d
	}
	for _, c := range []struct {
		rule   string
		faults uint64
		want   func(ran, [32]byte) bool
	}{
		{"C_Sign latency 60000", 0, func(r ran, d [32]byte) bool { return b.verifies(d, r.out) && r.took >= 60*time.Millisecond }},
		{"@session jitter 60000", 0, func(r ran, d [32]byte) bool { return b.verifies(d, r.out) && r.took >= 10*time.Millisecond }},
		{"C_Sign sleep 150", 1, func(r ran, d [32]byte) bool { return b.verifies(d, r.out) && r.took >= 150*time.Millisecond }},
		{"C_SignInit rv CKR_DEVICE_REMOVED", 1, failsWith("CKR_DEVICE_REMOVED")},
		{"C_SignInit rv 0x32", 1, failsWith("CKR_DEVICE_REMOVED")},
		{"C_SignInit rvafter CKR_DEVICE_ERROR", 1, failsWith("CKR_DEVICE_ERROR")},
		{"C_Sign segv", 1, func(r ran, _ [32]byte) bool { return r.signal == syscall.SIGSEGV }},
		{"C_Sign abort", 1, func(r ran, _ [32]byte) bool { return r.signal == syscall.SIGABRT }},
		{"C_Sign exit 3", 1, func(r ran, _ [32]byte) bool { return r.code == 3 }},
		{"C_Sign garbage", 1, func(r ran, d [32]byte) bool { return len(r.out) == 64 && !b.verifies(d, r.out) }},
		{"C_Sign zeros", 1, func(r ran, _ [32]byte) bool { return bytes.Equal(r.out, make([]byte, 64)) }},
		{"C_Sign short", 1, func(r ran, _ [32]byte) bool { return len(r.out) == 32 }},
		{"C_Sign bitflip", 1, func(r ran, d [32]byte) bool { return b.oneBitOff(d, r.out) }},
		{"C_Sign wrongkey", 1, func(r ran, d [32]byte) bool { return !b.verifies(d, r.out) && b.verifies(other(d), r.out) }},
		{"C_SignInit closeall", 1, failsWith("CKR_SESSION_HANDLE_INVALID")},
		{"C_SignInit logout", 1, failsWith("CKR_OBJECT_HANDLE_INVALID")}, // private keys are gone
	} {
		t.Run(c.rule, func(t *testing.T) {
			b.set(c.rule)
			digest := newDigest()
			var r ran
			counts := b.counted(func() { r = b.sign(digest) })
			if !c.want(r, digest) {
				t.Errorf("exit code %d, signal %v, %v, %d bytes: %s", r.code, r.signal, r.took, len(r.out), r.text)
			}
			if counts.Faults() != c.faults {
				t.Errorf("%d faults, want %d: %v", counts.Faults(), c.faults, counts)
			}
		})
	}
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if digest := newDigest(); !b.verifies(digest, b.sign(digest).out) {
		t.Error("no good signature after Clear")
	}
}

func failsWith(code string) func(ran, [32]byte) bool {
	return func(r ran, _ [32]byte) bool { return r.code == 1 && strings.Contains(r.text, code) }
}

// oneBitOff: the signature verifies once the right bit is flipped back.
func (b *bed) oneBitOff(digest [32]byte, sig []byte) bool {
	if len(sig) != 64 || b.verifies(digest, sig) {
		return false
	}
	for bit := range 8 * len(sig) {
		turned := bytes.Clone(sig)
		turned[bit/8] ^= 1 << (bit % 8)
		if b.verifies(digest, turned) {
			return true
		}
	}
	return false
}

// TestDigest: outputs other than signatures are corrupted, and results of verifications
// inverted.
func TestDigest(t *testing.T) {
	b := newBed(t)
	data := []byte("a message")
	b.set("C_Digest* bitflip")
	r := b.tool("", data, "--hash", "--mechanism", "SHA256")
	want := sha256.Sum256(data)
	off := 0
	for i := range want {
		off += bits.OnesCount8(want[i] ^ append(r.out, make([]byte, 32)...)[i])
	}
	if off != 1 {
		t.Errorf("digest of %d bytes is %d bits off: %s", len(r.out), off, r.text)
	}
	b.set("C_Verify* garbage")
	digest := newDigest()
	sig := filepath.Join(t.TempDir(), "sig")
	if err := os.WriteFile(sig, b.sign(digest).out, 0o600); err != nil {
		t.Fatal(err)
	}
	r = b.tool(b.hsm.PIN, digest[:], "--verify", "--mechanism", "ECDSA", "--id", "01", "--signature-file", sig)
	if !strings.Contains(r.text, "Invalid signature") {
		t.Errorf("a good signature: %s", r.text)
	}
}

// TestOptions counts in which of several processes a rule fires.
func TestOptions(t *testing.T) {
	b := newBed(t)
	for _, c := range []struct {
		rule string
		want string // F: failed, of processes with one C_Sign each
	}{
		{"C_Sign rv 5", "FFF"},
		{"C_Sign rv 5 n=2", "FF.."},
		{"C_Sign rv 5 skip=1 n=2", ".FF."},
		{"C_Sign rv 5 every=2", ".F.F"},
		{"C_Sign rv 5 each=0", ".."},
		{"C_Sign rv 5 each=1 n=3", "FFF."},
		{"C_Sign rv 5 p=0", "..."},
		{"@crypto rv 5 n=1", "F.."},
		{"C_[A-R]* rv 5", "FFF"}, // C_Initialize, to begin with
	} {
		b.set(c.rule)
		got := ""
		for range len(c.want) {
			if b.sign(newDigest()).code == 0 {
				got += "."
			} else {
				got += "F"
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.rule, got, c.want)
		}
	}
}

// TestPINLock: wrong PINs are counted over processes.
func TestPINLock(t *testing.T) {
	b := newBed(t)
	b.set("set pin_tries 3")
	list := func(pin string) string { return b.tool(pin, nil, "--list-objects").text }
	if text := list("wrong-pin"); !strings.Contains(text, "CKR_PIN_INCORRECT") {
		t.Fatalf("a wrong PIN: %s", text)
	}
	if text := list(b.hsm.PIN); strings.Contains(text, "CKR_") {
		t.Fatalf("the right PIN: %s", text) // and the count goes back
	}
	for range 3 {
		list("wrong-pin")
	}
	counts := b.counted(func() {
		if text := list(b.hsm.PIN); !strings.Contains(text, "CKR_PIN_LOCKED") {
			t.Errorf("the right PIN after three wrong ones: %s", text)
		}
	})
	if got := counts["C_Login"]; got.Calls != 1 || got.Errors != 1 {
		t.Errorf("C_Login: %+v", got)
	}
	if text := b.tool("", nil, "--list-token-slots").text; !strings.Contains(text, "user PIN locked") {
		t.Errorf("flags of a locked token: %s", text)
	}
	b.tool("", nil, "--login", "--login-type", "so", "--so-pin", "so-"+b.hsm.PIN, "--init-pin", "--new-pin", b.hsm.PIN)
	if text := list(b.hsm.PIN); strings.Contains(text, "CKR_") {
		t.Errorf("after C_InitPIN: %s", text)
	}
}

// TestNonsense: a rule without effect ends the process.
func TestNonsense(t *testing.T) {
	b := newBed(t)
	for _, rule := range []string{
		"C_Sing rv 5", "C_Sign", "C_Sign rvv 5", "C_Sign rv CKR_NONSENSE", "C_Sign rv 5 m=1", "C_Sign sleep long", "C_Sign rv 5 n=-1", "set pin_tries", "set nonsense 1",
	} {
		b.set(rule)
		if r := b.sign(newDigest()); r.code != 2 || !strings.Contains(r.text, "faultshim: ") {
			t.Errorf("%s: exit code %d: %s", rule, r.code, r.text)
		}
	}
}

// TestCounts: a call is counted even if its process dies in it.
func TestCounts(t *testing.T) {
	b := newBed(t)
	b.set("C_Sign segv n=1")
	counts := b.counted(func() {
		b.sign(newDigest())
		b.sign(newDigest())
	})
	if got := counts["C_Sign"]; got.Calls != 2 || got.Errors != 0 || got.Faults != 1 {
		t.Errorf("C_Sign: %+v", got)
	}
	faults, err := b.Injected()
	if err != nil || len(faults) != 1 || faults[0].Function != "C_Sign" || faults[0].Action != "segv" || faults[0].PID <= 0 {
		t.Errorf("log %v, %v", faults, err)
	}
	if _, err := shim.ReadCounts(b.Module); !errors.Is(err, shim.ErrCounts) {
		t.Errorf("counts of another file: %v", err)
	}
}
