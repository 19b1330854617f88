package wire

import "slices"

// Op is what a request asks for.
type Op byte

// The operations, one for each method of [hsm.Token].
const (
	Sign Op = iota + 1
	Derive
	MAC
	Import
	MACWrapped
	Generate
	Keys
	Encrypt
	Decrypt
	Restore
	Adopt
	Destroy
	StoreCertificate
	Certificates
	Rewrap
	Objects

	LastOp = Objects
)

var opNames = [...]string{
	Sign: "sign", Derive: "derive", MAC: "mac", Import: "import", MACWrapped: "mac-wrapped",
	Generate: "generate", Keys: "keys", Encrypt: "encrypt", Decrypt: "decrypt", Restore: "restore",
	Adopt: "adopt", Destroy: "destroy", StoreCertificate: "store-certificate", Certificates: "certificates",
	Rewrap: "rewrap", Objects: "objects",
}

// String is the op label of metrics.
func (o Op) String() string { return opNames[o] }

// listing are the operations that read all objects of a kind.
var listing = []Op{Keys, Certificates, Objects}

// keeping are the operations that change what is on the token.
var keeping = []Op{Generate, Restore, Adopt, Destroy, StoreCertificate}

// Repeatable tells whether a request may be given to another worker when one
// died over it: what changes the token may have been done already.
func (o Op) Repeatable() bool { return !slices.Contains(keeping, o) }

// Slow tells whether an operation makes or lists objects, which takes longer
// than to use one.
func (o Op) Slow() bool { return !o.Repeatable() || slices.Contains(listing, o) }
