// Package problem defines the types of the admin API's error answers (RFC 9457).
package problem

// The types.
const (
	NotFound    = "urn:countersign:problem:not-found"
	Exists      = "urn:countersign:problem:exists"
	Conflict    = "urn:countersign:problem:conflict"
	KeyStep     = "urn:countersign:problem:key-step"
	Unsupported = "urn:countersign:problem:unsupported"
	Uncovered   = "urn:countersign:problem:uncovered"
	Quorum      = "urn:countersign:problem:quorum"
	Over        = "urn:countersign:problem:change-over"
	Signer      = "urn:countersign:problem:signer"
	Signature   = "urn:countersign:problem:signature"
	Input       = "urn:countersign:problem:input"
	Unavailable = "urn:countersign:problem:unavailable"
	Store       = "urn:countersign:problem:store-unavailable"
	PIN         = "urn:countersign:problem:pin"
	Locked      = "urn:countersign:problem:locked"
	Internal    = "urn:countersign:problem:internal"
)
