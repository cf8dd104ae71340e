package probe

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
)

// listenPoll is how often a starting container's sockets are looked at.
const listenPoll = 5 * time.Millisecond

// waitListening returns true when the container listens on every TCP port it declares, when the
// runtime does not tell where to look, or at deadline; false if ctx ends first. It looks at the
// kernel's list of sockets: a connection would be seen, and perhaps served, by the application.
func (r *Runner) waitListening(ctx context.Context, clk clock.Clock, t Target, deadline time.Time) bool {
	pid := r.PID(ctx, t.ContainerID)
	for pid != 0 && clk.Now().Before(deadline) {
		open, err := listening(pid)
		if err != nil || allOpen(t.Container, open) {
			break // the process is gone, which others will see, or it is there
		}
		if !sleep(ctx, clk, listenPoll) {
			return false
		}
	}
	return ctx.Err() == nil
}

func allOpen(c *v1.Container, open map[int32]bool) bool {
	for _, p := range c.Ports {
		if (p.Protocol == v1.ProtocolTCP || p.Protocol == "") && !open[p.ContainerPort] {
			return false
		}
	}
	return true
}

// listening returns the TCP ports listened on in the network namespace of a process (proc(5),
// /proc/net/tcp).
func listening(pid int) (map[int32]bool, error) {
	open := map[int32]bool{}
	for _, file := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if os.IsNotExist(err) && file == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			if port, ok := listenPort(sc.Text()); ok {
				open[port] = true
			}
		}
		f.Close()
		if err := sc.Err(); err != nil {
			return nil, err
		}
	}
	return open, nil
}

// listenPort reads one line of /proc/net/tcp; ok is false unless the socket listens.
func listenPort(line string) (port int32, ok bool) {
	const listen = "0A"
	f := strings.Fields(line)
	if len(f) < 4 || f[3] != listen {
		return 0, false
	}
	_, hex, _ := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	return int32(n), err == nil
}
