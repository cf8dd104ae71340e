package box

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func trueCmd(*call) int  { return 0 }
func falseCmd(*call) int { return 1 }

func pwd(c *call) int {
	if _, args, err := c.flags("LP"); err != nil || len(args) > 0 {
		return c.usage("too many arguments")
	}
	fmt.Fprintln(c.out, c.dir)
	return 0
}

func sleep(c *call) int {
	var total time.Duration
	if len(c.args) == 0 {
		return c.usage("missing operand")
	}
	for _, a := range c.args {
		d, err := interval(a)
		if err != nil {
			return c.usage("%v", err)
		}
		total += d
	}
	t := time.NewTimer(total)
	defer t.Stop()
	select {
	case <-t.C:
		return 0
	case <-c.ctx.Done():
		return 143
	}
}

// interval reads "5", "0.5", "2m", "infinity".
func interval(text string) (time.Duration, error) {
	if text == "infinity" || text == "inf" {
		return 1<<63 - 1, nil
	}
	unit, number := time.Second, text
	if i := strings.IndexAny(text, "smhd"); i >= 0 && i == len(text)-1 {
		unit = map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[text[i]]
		number = text[:i]
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f < 0 || f*float64(unit) > 1<<62 {
		return 0, fmt.Errorf("invalid time interval '%s'", text)
	}
	return time.Duration(f * float64(unit)), nil
}

// envCmd prints the environment, or runs a command in a changed one.
func envCmd(c *call) int {
	environ, args := c.environ(), c.args
	for len(args) > 0 {
		a := args[0]
		if a == "-i" || a == "-" {
			environ = nil
		} else if a == "-u" && len(args) > 1 {
			args = args[1:]
			environ = without(environ, args[0])
		} else if strings.HasPrefix(a, "-") {
			return c.usage("unrecognized option '%s'", a)
		} else if name, _, ok := strings.Cut(a, "="); ok {
			environ = append(without(environ, name), a)
		} else {
			break
		}
		args = args[1:]
	}
	if len(args) == 0 {
		for _, e := range environ {
			fmt.Fprintln(c.out, e)
		}
		return 0
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		c.fail(args[0], errors.New("not found"))
		return 127
	}
	cmd := exec.CommandContext(c.ctx, path, args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, c.dir, c.in, c.out, c.err
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.ExitCode() < 0 {
			return 128 + int(exit.Sys().(interface{ Signal() unix.Signal }).Signal())
		}
		return exit.ExitCode()
	default:
		c.fail(args[0], err)
		return 126
	}
}

func without(environ []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(e string) bool { return strings.HasPrefix(e, name+"=") })
}

func hostname(c *call) int {
	opts, args, err := c.flags("sfi")
	if err != nil || len(args) > 0 {
		return c.usage("setting the host name is not supported")
	}
	name, err := os.Hostname()
	if err != nil {
		return c.fail("", err)
	}
	if opts['s'] != "" {
		name, _, _ = strings.Cut(name, ".")
	}
	if opts['i'] != "" {
		return c.hostAddresses(name)
	}
	fmt.Fprintln(c.out, name)
	return 0
}

// hostAddresses prints what /etc/hosts says of name.
func (c *call) hostAddresses(name string) int {
	data, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return c.fail("", err)
	}
	var found []string
	for line := range strings.SplitSeq(string(data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 1 && slices.Contains(f[1:], name) {
			found = append(found, f[0])
		}
	}
	if len(found) == 0 {
		return c.fail(name, errors.New("no address in /etc/hosts"))
	}
	fmt.Fprintln(c.out, strings.Join(found, " "))
	return 0
}

func id(c *call) int {
	opts, args, err := c.flags("ugGn")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(args) > 0 {
		return c.usage("only the own identity is known")
	}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	groups, _ := os.Getgroups()
	if !slices.Contains(groups, int(gid)) {
		groups = append([]int{int(gid)}, groups...)
	}
	show := func(n uint32, name string) string {
		if opts['n'] != "" {
			return name
		}
		return strconv.Itoa(int(n))
	}
	switch {
	case opts['u'] != "":
		fmt.Fprintln(c.out, show(uid, userName(uid)))
	case opts['g'] != "":
		fmt.Fprintln(c.out, show(gid, groupName(gid)))
	default:
		var list []string
		for _, g := range groups {
			if opts['G'] != "" {
				list = append(list, show(uint32(g), groupName(uint32(g))))
			} else {
				list = append(list, named(uint32(g), groupName(uint32(g))))
			}
		}
		if opts['G'] != "" {
			fmt.Fprintln(c.out, strings.Join(list, " "))
			break
		}
		fmt.Fprintf(c.out, "uid=%s gid=%s groups=%s\n", named(uid, userName(uid)), named(gid, groupName(gid)), strings.Join(list, ","))
	}
	return 0
}

func named(n uint32, name string) string {
	if name == strconv.Itoa(int(n)) {
		return name
	}
	return fmt.Sprintf("%d(%s)", n, name)
}

func whoami(c *call) int {
	if len(c.args) > 0 {
		return c.usage("extra operand '%s'", c.args[0])
	}
	fmt.Fprintln(c.out, userName(uint32(os.Geteuid())))
	return 0
}

func uname(c *call) int {
	opts, args, err := c.flags("asnrvmpo")
	if err != nil || len(args) > 0 {
		return c.usage("%v", errors.Join(err, nil))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return c.fail("", err)
	}
	if len(opts) == 0 {
		opts['s'] = "true"
	}
	var out []string
	for _, f := range []struct {
		flag  byte
		value string
	}{
		{'s', unix.ByteSliceToString(u.Sysname[:])}, {'n', unix.ByteSliceToString(u.Nodename[:])},
		{'r', unix.ByteSliceToString(u.Release[:])}, {'v', unix.ByteSliceToString(u.Version[:])},
		{'m', unix.ByteSliceToString(u.Machine[:])}, {'o', "Linux"},
	} {
		if opts[f.flag] != "" || opts['a'] != "" {
			out = append(out, f.value)
		}
	}
	fmt.Fprintln(c.out, strings.Join(out, " "))
	return 0
}

// ps lists the processes of this PID namespace. The selecting options of the
// BSD and System V tools all mean "everything".
func ps(c *call) int {
	for _, a := range c.args {
		if strings.Trim(a, "-aAeflxuwT") != "" {
			return c.usage("unrecognized option '%s'", a)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return c.fail("", err)
	}
	fmt.Fprintf(c.out, "%5s %-8s %5s %s %s\n", "PID", "USER", "RSS", "S", "COMMAND")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		if line, ok := process(pid); ok {
			fmt.Fprintln(c.out, line)
		}
	}
	return 0
}

// process describes one process; false when it has ended meanwhile.
func process(pid int) (string, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return "", false
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(string(status), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			fields[k] = strings.TrimSpace(v)
		}
	}
	command := "[" + fields["Name"] + "]"
	if cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(cmdline) > 0 {
		command = strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
	}
	uid, _ := strconv.ParseUint(first(fields["Uid"]), 10, 32)
	rss, _ := strconv.ParseInt(first(fields["VmRSS"]), 10, 64)
	return fmt.Sprintf("%5d %-8s %5s %s %s", pid, userName(uint32(uid)), size(rss<<10, true), first(fields["State"]), command), true
}

func first(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return f[0]
	}
	return ""
}

func date(c *call) int {
	opts, args, err := c.flags("uRd:I")
	if err != nil {
		return c.usage("%v", err)
	}
	now := time.Now()
	if d, ok := opts['d']; ok {
		sec, err := strconv.ParseInt(strings.TrimPrefix(d, "@"), 10, 64)
		if err != nil || !strings.HasPrefix(d, "@") {
			return c.usage("only dates of the form @seconds are understood, not '%s'", d)
		}
		now = time.Unix(sec, 0)
	}
	if opts['u'] != "" {
		now = now.UTC()
	}
	format := "+%a %b %e %H:%M:%S %Z %Y"
	switch {
	case len(args) > 1 || len(args) == 1 && args[0][:min(1, len(args[0]))] != "+":
		return c.usage("setting the clock is not supported")
	case len(args) == 1:
		format = args[0]
	case opts['R'] != "":
		format = "+%a, %d %b %Y %H:%M:%S %z"
	case opts['I'] != "":
		format = "+%F"
	}
	text, err := strftime(format[1:], now)
	if err != nil {
		return c.usage("%v", err)
	}
	fmt.Fprintln(c.out, text)
	return 0
}

func strftime(format string, t time.Time) (string, error) {
	layouts := map[byte]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'h': "Jan", 'd': "02", 'e': "_2", 'D': "01/02/06", 'F': "2006-01-02",
		'H': "15", 'I': "03", 'm': "01", 'M': "04", 'p': "PM", 'R': "15:04", 'S': "05", 'T': "15:04:05", 'y': "06", 'Y': "2006", 'z': "-0700", 'Z': "MST", 'j': "002",
	}
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			out.WriteByte(format[i])
			continue
		}
		i++
		switch k := format[i]; k {
		case '%':
			out.WriteByte('%')
		case 'n':
			out.WriteByte('\n')
		case 't':
			out.WriteByte('\t')
		case 's':
			out.WriteString(strconv.FormatInt(t.Unix(), 10))
		case 'N':
			fmt.Fprintf(&out, "%09d", t.Nanosecond())
		default:
			layout, ok := layouts[k]
			if !ok {
				return "", fmt.Errorf("format %%%c is not supported", k)
			}
			out.WriteString(t.Format(layout))
		}
	}
	return out.String(), nil
}

// kill sends a signal, SIGTERM unless told otherwise, to processes.
func kill(c *call) int {
	sig, args := unix.SIGTERM, c.args
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0] != "--" {
		name := args[0][1:]
		args = args[1:]
		if (name == "s" || name == "n") && len(args) > 0 {
			name, args = args[0], args[1:]
		}
		if n, err := strconv.Atoi(name); err == nil {
			sig = unix.Signal(n)
		} else if sig = unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); sig == 0 {
			return c.usage("invalid signal '%s'", name)
		}
	}
	if len(args) == 0 {
		return c.usage("give a process")
	}
	status := 0
	for _, a := range args {
		pid, err := strconv.Atoi(a)
		if err == nil {
			err = unix.Kill(pid, sig)
		} else {
			err = errors.New("not a process number")
		}
		if err != nil {
			status = c.fail(a, err)
		}
	}
	return status
}

// umask shows or sets the mask of new files' permissions.
func umask(c *call) int {
	if len(c.args) == 0 {
		old := unix.Umask(0)
		unix.Umask(old)
		fmt.Fprintf(c.out, "%04o\n", old)
		return 0
	}
	mask, err := strconv.ParseUint(c.args[0], 8, 9)
	if err != nil || len(c.args) > 1 {
		return c.usage("invalid mask '%s'", strings.Join(c.args, " "))
	}
	unix.Umask(int(mask))
	return 0
}
