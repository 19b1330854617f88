package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"countersign/internal/cli"
)

// writeWhole writes a file of mode 0600 that is there whole and durable, or as it was
// before: under another name first, then renamed. An error has exit code 74, unless
// write has given it another.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return cli.Fail(cli.IO, err, "name a directory that you may write")
	}
	err = write(f)
	if syncErr := errors.Join(f.Sync(), f.Close()); err == nil && syncErr != nil {
		err = cli.Fail(cli.IO, syncErr, "")
	}
	if err == nil {
		err = cli.Fail(cli.IO, os.Rename(f.Name(), path), "")
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error counts
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	return cli.Fail(cli.IO, err, "")
}
