package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"countersign/internal/fault"
	"countersign/internal/version"
)

// addVersion gives a root command, whose RunE is set, the flag --version. It follows -o if the command has it.
func addVersion(root *cobra.Command) {
	asked := root.Flags().Bool("version", false, "print the version, the commit if it is known, and the version of Go")
	run := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if !*asked || len(args) > 0 {
			return run(cmd, args)
		}
		v := version.Of(cmd.Root().Name())
		if flag := cmd.Flags().Lookup("output"); flag != nil {
			if format, ok := flag.Value.(*Format); ok && *format != FormatTable {
				return Printer{Out: cmd.OutOrStdout(), Format: *format}.value(v)
			}
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), v)
		return fault.Output.Of(err)
	}
}
