// Package innetns runs code inside another network namespace.
package innetns

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Do runs f on a thread that is in the network namespace at path, and waits for it; with
// path "" it calls f where it is. Sockets and /proc/sys/net that f opens are that
// namespace's; goroutines that f starts are not in it.
func Do(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and no other
		// goroutine ever runs in the namespace.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", path, err)
			return
		}
		if err := errors.Join(netns.Set(ns), ns.Close()); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}
