package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"countersign/appliance/admin"
	"countersign/internal/cli"
	"countersign/internal/config"
)

var doctorTable = cli.Table[admin.Examination]{
	{Title: "Check", Value: func(e admin.Examination) string { return e.Check }},
	{Title: "Status", Value: func(e admin.Examination) string { return e.Status }},
	{Title: "Detail", Value: func(e admin.Examination) string { return e.Detail }},
	{Title: "What to do", Value: func(e admin.Examination) string { return e.Advice }},
}

// doctor collects examinations.
type doctor struct {
	cfg   *config.Appliance
	from  surroundings
	found []admin.Examination
}

func doctorCommand(path *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Args: cobra.NoArgs,
		Short: "Examine configuration, files, host, HSM and store, beside a running daemon or without one",
	}
	format := cli.AddOutputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d := &doctor{}
		var err error
		if d.cfg, err = config.LoadAppliance(*path); err != nil {
			d.fails("configuration", err)
		} else {
			d.ok("configuration", *path)
			d.from = around(cmd, config.Log{Level: "off", Format: "text"})
			d.examine(cmd.Context())
		}
		if err := doctorTable.List(cli.Printer{Out: cmd.OutOrStdout(), Format: *format}, d.found); err != nil {
			return err
		}
		return d.verdict()
	}
	return cmd
}

func (d *doctor) examine(ctx context.Context) {
	d.files()
	d.host()
	d.service(ctx)
}

func (d *doctor) ok(check, detail string) {
	d.found = append(d.found, admin.Examination{Check: check, Status: admin.CheckOK, Detail: detail})
}

func (d *doctor) warns(check, detail, advice string) {
	d.found = append(d.found, admin.Examination{Check: check, Status: admin.CheckWarn, Detail: detail, Advice: advice})
}

// fails takes exit code and advice from the error, as the program's end would.
func (d *doctor) fails(check string, err error) {
	e := admin.Examination{Check: check, Status: admin.CheckFail, Detail: err.Error(), ExitCode: int(cli.Failed)}
	var known interface {
		error
		ExitCode() int
		Hint() string
	}
	if errors.As(explain(err), &known) {
		e.ExitCode, e.Advice = known.ExitCode(), known.Hint()
	}
	d.found = append(d.found, e)
}

// refuses is fails with an exit code and advice of its own.
func (d *doctor) refuses(check string, err error, code cli.Code, advice string) {
	d.fails(check, cli.Fail(code, err, advice))
}

// classes are the exit codes of failures, the one to be looked at first at first.
var classes = []cli.Code{cli.Config, cli.BadSignature, cli.Auth, cli.IO, cli.Unavailable, cli.Failed}

// verdict is the end of the program: the class of what failed.
func (d *doctor) verdict() error {
	failed := slices.DeleteFunc(slices.Clone(d.found), func(e admin.Examination) bool { return e.Status != admin.CheckFail })
	if len(failed) == 0 {
		return nil
	}
	code := cli.Failed
	for _, class := range slices.Backward(classes) {
		if slices.ContainsFunc(failed, func(e admin.Examination) bool { return e.ExitCode == int(class) }) {
			code = class
		}
	}
	return cli.Fail(code, fmt.Errorf("%d of %d checks failed, %s first", len(failed), len(d.found), failed[0].Check), failed[0].Advice)
}
