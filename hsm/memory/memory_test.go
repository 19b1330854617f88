package memory_test

import (
	"testing"

	"countersign/hsm"
	"countersign/hsm/hsmtest"
	"countersign/hsm/memory"
)

func TestContract(t *testing.T) {
	hsmtest.Run(t, func(*testing.T) hsm.Token { return memory.New() })
}
