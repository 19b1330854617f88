// Package softhsmtest tests the real programs with a real PKCS#11 token.
package softhsmtest

import (
	"fmt"
	"os"
	"testing"

	"countersign/softhsm-test/harness"
)

// programs are those that every test of this package starts.
var programs harness.Bin

func TestMain(m *testing.M) {
	var err error
	if programs, err = harness.Built(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if code, asked := offlineIfAsked(); asked {
		os.Exit(code)
	}
	harness.Main(m, harness.Suite{})
}
