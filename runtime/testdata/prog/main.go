// Command prog is what the runtime's tests run in containers.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	name, args := os.Args[1], os.Args[2:]
	f := commands[name]
	if f == nil {
		fmt.Fprintln(os.Stderr, "prog: unknown command", name)
		os.Exit(2)
	}
	f(args)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "prog:", err)
		os.Exit(1)
	}
}

var commands map[string]func([]string)

func init() {
	commands = map[string]func([]string){
		"echo": func(a []string) { fmt.Println(strings.Join(a, " ")) },
		"err":  func(a []string) { fmt.Fprintln(os.Stderr, strings.Join(a, " ")) },
		"raw":  func(a []string) { fmt.Print(strings.Join(a, " ")) },
		"exit": func(a []string) { n, _ := strconv.Atoi(a[0]); os.Exit(n) },
		"cat": func(a []string) {
			if len(a) == 0 {
				io.Copy(os.Stdout, os.Stdin)
			}
			for _, p := range a {
				b, err := os.ReadFile(p)
				check(err)
				os.Stdout.Write(b)
			}
		},
		"env": func([]string) { fmt.Println(strings.Join(os.Environ(), "\n")) },
		"id": func([]string) {
			g, _ := os.Getgroups()
			fmt.Println(os.Getuid(), os.Getgid(), g)
		},
		"pwd":      func([]string) { d, err := os.Getwd(); check(err); fmt.Println(d) },
		"hostname": func([]string) { h, _ := os.Hostname(); fmt.Println(h) },
		"pid":      func([]string) { fmt.Println(os.Getpid()) },
		"write":    func(a []string) { check(os.WriteFile(a[0], []byte(a[1]), 0o644)) },
		"ls": func(a []string) {
			es, err := os.ReadDir(a[0])
			check(err)
			for _, e := range es {
				fmt.Println(e.Name())
			}
		},
		"stat": func(a []string) {
			for _, p := range a {
				var st syscall.Stat_t
				check(syscall.Lstat(p, &st))
				fmt.Printf("%o %d:%d %d\n", st.Mode, st.Uid, st.Gid, st.Nlink)
			}
		},
		"xattr": func(a []string) {
			b := make([]byte, 256)
			n, err := syscall.Getxattr(a[0], a[1], b)
			check(err)
			fmt.Println(string(b[:n]))
		},
		"lines": func(a []string) {
			n, _ := strconv.Atoi(a[0])
			w := bufio.NewWriter(os.Stdout)
			for i := range n {
				fmt.Fprintf(w, "line %d\n", i)
			}
			w.Flush()
		},
		"big":     func(a []string) { n, _ := strconv.Atoi(a[0]); fmt.Print(strings.Repeat("x", n)) },
		"tick":    tick,
		"wait":    wait,
		"sleep":   func(a []string) { d, err := time.ParseDuration(a[0]); check(err); time.Sleep(d) },
		"syscall": doSyscall,
		"eat":     eat,
		"listen":  listen,
		"fork": func([]string) {
			p, err := os.StartProcess("/proc/self/exe", []string{"prog", "sleep", "1h"}, &os.ProcAttr{})
			check(err)
			fmt.Println(p.Pid)
		},
		"forkhold": func([]string) {
			_, err := os.StartProcess("/proc/self/exe", []string{"prog", "sleep", "1h"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
			check(err)
			fmt.Println("parent done")
		},
		"fds": func([]string) {
			ps, _ := filepath.Glob("/proc/self/fd/*")
			for _, p := range ps {
				l, err := os.Readlink(p)
				if err == nil {
					fmt.Println(filepath.Base(p), l)
				}
			}
		},
		"winsize": func([]string) {
			var w [4]uint16
			syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&w)))
			fmt.Println(w[0], w[1])
		},
		"overwrite": func(a []string) {
			// Tries to write to the program of process a[0], as CVE-2019-5736 does.
			_, err := os.OpenFile("/proc/"+a[0]+"/exe", os.O_WRONLY|os.O_TRUNC, 0)
			fmt.Println("overwrite:", err)
		},
	}
}

func tick(a []string) {
	d, err := time.ParseDuration(a[0])
	check(err)
	for i := 0; ; i++ {
		fmt.Println("tick", i)
		time.Sleep(d)
	}
}

// wait ends on the signal named by number, with code 0; -1 ignores TERM.
func wait(a []string) {
	c := make(chan os.Signal, 1)
	n := 15
	if len(a) > 0 {
		n, _ = strconv.Atoi(a[0])
	}
	if n < 0 {
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	signal.Notify(c, syscall.Signal(n))
	fmt.Println("ready")
	fmt.Println("got", <-c)
}

func doSyscall(a []string) {
	var v [7]uintptr
	for i, s := range a {
		n, err := strconv.ParseUint(s, 0, 64)
		check(err)
		v[i] = uintptr(n)
	}
	_, _, e := syscall.Syscall6(v[0], v[1], v[2], v[3], v[4], v[5], v[6])
	fmt.Println(int(e))
}

func eat(a []string) {
	n, _ := strconv.Atoi(a[0])
	b := make([]byte, n<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("ate", len(b))
	time.Sleep(time.Hour)
}

func listen(a []string) {
	l, err := net.Listen("tcp", "127.0.0.1:"+a[0])
	check(err)
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		check(err)
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
}
