// Package doctor examines an installation: configuration, files, host, HSM and store. A running daemon examines HSM and
// store itself, when it is asked; without one the doctor opens both. It changes nothing but one audit record.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign/appliance/adminapi"
	"countersign/internal/cli"
	"countersign/internal/config"
)

// Config has the values of the command line and of the daemon's wiring.
type Config struct {
	Path         string // of the configuration file
	AnchorPath   func(*config.Appliance) string
	WorkerBinary func(*config.Appliance) (string, error)
	LeastFree    uint64        // bytes of free disk below which the daemon is not ready
	Timeout      time.Duration // bounds the examination of HSM and store
	// Explain gives an error its exit code and advice.
	Explain func(error) error
	// Open examines store and token in this process. It tries the PIN once and moves no anchor.
	Open func(ctx context.Context, cfg *config.Appliance) ([]adminapi.Examination, error)
}

// doctor collects examinations.
type doctor struct {
	Config
	cfg   *config.Appliance
	found []adminapi.Examination
}

// Examine makes every check. If the configuration cannot be read it makes no other check.
func Examine(ctx context.Context, c Config) []adminapi.Examination {
	d := &doctor{Config: c}
	cfg, err := config.LoadAppliance(c.Path)
	if err != nil {
		d.fails("configuration", err)
		return d.found
	}
	d.cfg = cfg
	d.ok("configuration", c.Path)
	d.files()
	d.host()
	d.service(ctx)
	return d.found
}

func (d *doctor) ok(check, detail string) {
	d.found = append(d.found, adminapi.Examination{Check: check, Status: adminapi.CheckOK, Detail: detail})
}

func (d *doctor) warns(check, detail, advice string) {
	d.found = append(d.found, adminapi.Examination{Check: check, Status: adminapi.CheckWarn, Detail: detail, Advice: advice})
}

// fails reports an error with the exit code and advice that the program would have for it.
func (d *doctor) fails(check string, err error) {
	e := adminapi.Examination{Check: check, Status: adminapi.CheckFail, Detail: err.Error(), ExitCode: int(cli.Failed)}
	var known interface {
		error
		ExitCode() int
		Hint() string
	}
	if errors.As(d.Explain(err), &known) {
		e.ExitCode, e.Advice = known.ExitCode(), known.Hint()
	}
	d.found = append(d.found, e)
}

// refuses reports an error with the given exit code and advice.
func (d *doctor) refuses(check string, err error, code cli.Code, advice string) {
	d.fails(check, cli.Fail(code, err, advice))
}

// classes are the exit codes of failures, the most urgent first.
var classes = []cli.Code{cli.Config, cli.BadSignature, cli.Auth, cli.IO, cli.Unavailable, cli.Failed}

// Verdict returns nil if no check failed, else an error with the most urgent exit code.
func Verdict(found []adminapi.Examination) error {
	ok := func(e adminapi.Examination) bool { return e.Status != adminapi.CheckFail }
	failed := slices.DeleteFunc(slices.Clone(found), ok)
	if len(failed) == 0 {
		return nil
	}
	code := cli.Failed
	for _, class := range slices.Backward(classes) {
		if slices.ContainsFunc(failed, func(e adminapi.Examination) bool { return e.ExitCode == int(class) }) {
			code = class
		}
	}
	err := fmt.Errorf("%d of %d checks failed, %s first", len(failed), len(found), failed[0].Check)
	return cli.Fail(code, err, failed[0].Advice)
}
