// Package matrix is the contract of package hsm on the PKCS#11 modules that
// Debian has, each through real worker processes: what a deployment can expect
// of its own, and where the code trusted SoftHSM too much. It has tests only;
// table prints what they find.
package matrix
