package relay

import (
	"bufio"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
)

// maxHookLine bounds a line that is logged of a hook's output, in bytes. The rest of the line is dropped.
const maxHookLine = 1 << 10

// hookOutput is the standard error of one run of the hook. The relay logs its lines. The hook inherits the reading end
// too, so that its writes fail neither when the relay ends nor afterwards.
type hookOutput struct{ read, write *os.File }

func newHookOutput() (o hookOutput, err error) {
	o.read, o.write, err = os.Pipe()
	if err != nil {
		return o, fmt.Errorf("running hook: %w", err)
	}
	return o, nil
}

// log logs each line until the hook, and every process that it left in the background, has ended.
func (o hookOutput) log(log hclog.Logger) {
	defer func() { _ = o.read.Close() }() // it was read to its end
	lines := bufio.NewReaderSize(o.read, maxHookLine)
	for {
		line, isPrefix, err := lines.ReadLine()
		if err != nil {
			return
		}
		log.Info("hook wrote", "line", string(line))
		for isPrefix && err == nil {
			_, isPrefix, err = lines.ReadLine()
		}
	}
}

// close ends the relay's part of the writing end.
func (o hookOutput) close() { _ = o.write.Close() } // nothing is buffered
