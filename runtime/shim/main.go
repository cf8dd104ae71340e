//go:build linux

// One CPU is all a pod's helper uses: nothing need ask, now or later, how many there are.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command shim is the small static helper embedded in Skiff.
//
// A separate program, not a re-exec of the big binary: package initialisation of
// every linked package runs before main, which costs 25 ms and megabytes per pod.
// Its modes:
//
//	monitor  parents the containers of one pod, outlives the agent (monitor.go)
//	init     sets up or joins a container, then becomes its command (init.go)
//	podinit  process 1 of a shared PID namespace; reached through init
//	follow   copies a growing, rotating file to standard output until TERM
//	pause    waits for TERM
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/skiff-project/skiff/internal/ownpages"
	"golang.org/x/sys/unix"
)

func main() {
	// Everything a mode changes (namespaces, credentials, seccomp) belongs to one
	// thread, and execve keeps the calling thread's.
	runtime.LockOSThread()
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "monitor":
		runtime.GOMAXPROCS(1)
		exit(runMonitor())
	case "init":
		exit(runInit())
	case "follow":
		if len(os.Args) != 3 {
			fail("usage: skiff-shim follow FILE")
		}
		runtime.GOMAXPROCS(1)
		exit(follow(os.Args[2]))
	case "pause":
		exit(pause())
	}
	fail("usage: skiff-shim monitor|init|follow FILE|pause")
}

// rest gives back the memory that an idle helper does not need: most of what it took to
// start. There are two helpers to a pod of Skiff's own, one to any other.
func rest() {
	debug.FreeOSMemory()
	_ = ownpages.Release() // no worse than before
}

// failure is an error with its context, without fmt.
type failure string

func (f failure) Error() string { return string(f) }

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return failure(what + ": " + err.Error())
}

func exit(err error) {
	if err != nil {
		fail(err.Error())
	}
	unix.Exit(0)
}

func fail(msg string) {
	unix.Write(2, []byte("skiff-shim: "+msg+"\n"))
	unix.Exit(1)
}
