// Package protocol defines the vocabulary of OA1, the offline-authorization
// protocol that PROTOCOL.md specifies: identifiers, keys, services, levels, factors,
// amounts, results and codes. The subpackages message, trust, enrol, receipt, derive
// and deviceapi implement its parts.
//
// Nothing below this directory keeps state, opens a connection or reads a clock; the
// caller passes in time and randomness. Every value that parses marshals back to the
// same bytes, and everything else is an error. Errors that a peer is told about wrap a
// [Code].
package protocol
