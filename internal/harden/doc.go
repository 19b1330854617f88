// Package harden keeps the secrets of a process out of core files and away from other processes.
// Every program calls [Process] before it does anything else.
package harden
