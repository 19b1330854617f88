// Package matrix runs the test suite of package hsm on the PKCS#11 modules that Debian
// has, each through real worker processes: what a deployment can expect of its module, and
// where the code relied on SoftHSM too much. It has tests only; table prints their
// results.
package matrix
