package main

import (
	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cmd/pollux/bench"
	"github.com/pollux-ha/pollux/cmd/pollux/dataplane"
)

// addRooms adds the commands that other packages bring.
func (p *program) addRooms(root *cobra.Command, add func(group string, commands ...*cobra.Command)) {
	add("guests", p.diskCommand())
	add("try", p.faultCommand(), p.demoCommand(), newVMCommand(), bench.NewCommand())
	root.AddCommand(dataplane.NewCommand(), dataplane.NewEventsCommand())
}
