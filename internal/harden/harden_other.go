//go:build !linux

package harden

// Process does nothing: the protection is the operating system's.
func Process() error { return nil }
