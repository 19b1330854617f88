//go:build !linux

package harden

// Process does nothing: only Linux is supported.
func Process() error { return nil }
