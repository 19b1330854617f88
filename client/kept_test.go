package client

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/protocol"
	"countersign/protocol/receipt"
	"countersign/protocol/trust"
	"countersign/softhsm-test/clienttest"
)

// TestReceiptsOutliveTheirRoot verifies a receipt after the appliance has replaced its root or its key.
func TestReceiptsOutliveTheirRoot(t *testing.T) {
	for name, tc := range map[string]struct {
		rotate  []func(*clienttest.Appliance)
		givenUp bool
	}{
		"routine":                       {rotate: rotations(replace)},
		"routine, twice":                {rotate: rotations(replace, replace)},
		"root compromised":              {rotate: rotations(giveUp), givenUp: true},
		"root compromised, and another": {rotate: rotations(giveUp, replace), givenUp: true},
		"decision key compromised":      {rotate: rotations((*clienttest.Appliance).RuleOut), givenUp: true},
		"decision key compromised, then a routine root": {
			rotate: rotations((*clienttest.Appliance).RuleOut, replace), givenUp: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := clienttest.New(t)
			a.Do(clienttest.Behaviour{Decide: true})
			c, dir := enrolledClient(t, a)
			address := a.Listen("tcp")
			old := fullReceipt(t, c, address)
			var now Receipt
			for _, rotate := range tc.rotate {
				rotate(a)
				now = fullReceipt(t, c, address)
			}
			c = reopen(t, c, dir)
			if r, err := c.VerifyReceipt(now.Serial); err != nil || !r.Verified {
				t.Errorf("the receipt of now: %+v, %v", r, err)
			}
			r, err := c.VerifyReceipt(old.Serial)
			var given *receipt.GivenUpError
			if errors.As(err, &given) != tc.givenUp || (err == nil) == tc.givenUp || errors.Is(err, ErrReceipt) {
				t.Errorf("the receipt of before: %+v, %v", r, err)
			}
			list, err := c.Receipts()
			if err != nil || len(list) != 1+len(tc.rotate) || !list[len(list)-1].Verified {
				t.Fatalf("receipts %+v, %v", list, err)
			}
			if list[0].Verified == tc.givenUp || list[0].GivenUp.IsZero() == tc.givenUp {
				t.Errorf("listed as verified %t, given up %v", list[0].Verified, list[0].GivenUp)
			}
			if tc.givenUp && time.Since(list[0].GivenUp) > 2*time.Hour {
				t.Errorf("given up on %v, want the not-before of now", list[0].GivenUp)
			}
		})
	}
}

func rotations(list ...func(*clienttest.Appliance)) []func(*clienttest.Appliance) { return list }

func replace(a *clienttest.Appliance) { a.RotateRoot(trust.ReasonRoutine) }

func giveUp(a *clienttest.Appliance) { a.RotateRoot(trust.ReasonCompromised) }

func fullReceipt(t *testing.T, c *Client, address string) Receipt {
	t.Helper()
	r, err := c.Authorize(t.Context(), clienttest.Dial(t, address), Request{Service: 100, Receipt: true}, says(protocol.Approve))
	if err != nil || !r.Verified {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// TestEarlierRootIsForReceiptsOnly: the appliance's M2 under the old root is not taken any more.
func TestEarlierRootIsForReceiptsOnly(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, _ := enrolledClient(t, a)
	address := a.Listen("tcp")
	fullReceipt(t, c, address)
	a.RotateRoot(trust.ReasonRoutine)
	fullReceipt(t, c, address)
	earlier := c.state.Trust.EarlierRoots
	if len(earlier) != 1 || earlier[0].Number != 1 || len(earlier[0].Decisions) != 1 {
		t.Fatalf("earlier roots %+v", earlier)
	}
	for use := trust.UseKEM; use <= trust.UseClientCA; use++ {
		for _, b := range c.state.Trust.KeyCerts(use) {
			if _, err := trust.VerifyKeyCert(b, c.state.Trust.Root); err != nil {
				t.Errorf("%v: a certificate of another root: %v", use, err)
			}
		}
	}
}

// TestGivenUpOnArrival: a decision by a key that was given up is one from the moment of its arrival.
func TestGivenUpOnArrival(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, _ := enrolledClient(t, a)
	stolen := *c.state.Trust
	key := stolen.Keys[trust.UseDecision]
	delete(stolen.Keys, trust.UseDecision)
	stolen.EarlierRoots = []trust.EarlierRoot{{Number: 1, Key: stolen.Root, Decisions: []trust.Key{key}, GivenUp: 1_700_000_000}}
	c.state.Trust = &stolen
	request := Request{Service: 100, Receipt: true}
	r, err := c.Authorize(t.Context(), clienttest.Dial(t, a.Listen("tcp")), request, says(protocol.Approve))
	if err != nil || r.Verified || r.GivenUp.Unix() != 1_700_000_000 {
		t.Errorf("verified %t, given up %v, %v", r.Verified, r.GivenUp, err)
	}
}

// TestReceiptOfAWrongClock: the dates of the key are judged by the decision, not by the clock that the phone had.
func TestReceiptOfAWrongClock(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, _ := enrolledClient(t, a)
	ahead(c, 10*day)
	address := a.Listen("tcp")
	r := fullReceipt(t, c, address)
	c.now = time.Now
	if r, err := c.VerifyReceipt(r.Serial); err != nil || !r.Verified {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestOlderReceipts reads the files of earlier releases, which say whether the receipt was verified on arrival.
func TestOlderReceipts(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, dir := enrolledClient(t, a)
	r := fullReceipt(t, c, a.Listen("tcp"))
	file := filepath.Join(dir, receiptFile(r.Serial))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, []byte(strings.Replace(string(b), `"decision"`, `"verified": true, "decision"`, 1)))
	if got, err := c.VerifyReceipt(r.Serial); err != nil || !got.Verified {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestOlderReceiptsOutliveTheirKey: the file of an earlier release has no KeyCert. The client keeps the KeyCert of an
// epoch that ended long ago.
func TestOlderReceiptsOutliveTheirKey(t *testing.T) {
	a := clienttest.New(t)
	a.Do(clienttest.Behaviour{Decide: true})
	c, _ := enrolledClient(t, a)
	r := fullReceipt(t, c, a.Listen("tcp"))
	r.KeyCert = nil
	if err := c.storeReceipt(r); err != nil {
		t.Fatal(err)
	}
	earlier := *c.state.Trust
	earlier.Earlier, earlier.Keys = append(earlier.Earlier, earlier.Keys[trust.UseDecision]), maps.Clone(earlier.Keys)
	delete(earlier.Keys, trust.UseDecision)
	c.state.Trust = &earlier
	c.shows(trust.Shown{Use: trust.UseKEM, Epoch: 1, Now: unix(time.Now().Add(400 * day))})
	if r, err := c.VerifyReceipt(r.Serial); err != nil || !r.Verified {
		t.Errorf("%+v, %v", r, err)
	}
}
