package box

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func cat(c *call) int {
	_, names, err := c.flags("u")
	if err != nil {
		return c.usage("%v", err)
	}
	return c.eachInput(names, func(_ string, r io.Reader) error {
		_, err := io.Copy(c.out, r)
		return err
	})
}

// echo understands -n and -e, alone or together, before the first operand.
func echo(c *call) int {
	args, newline, escapes := c.args, true, false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "neE") == "" {
		newline = newline && !strings.Contains(args[0], "n")
		escapes = escapes || strings.Contains(args[0], "e")
		args = args[1:]
	}
	text := strings.Join(args, " ")
	if escapes {
		text = strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\r`, "\r", `\a`, "\a", `\b`, "\b", `\e`, "\x1b", `\0`, "\x00", `\\`, `\`).Replace(text)
	}
	if newline {
		text += "\n"
	}
	if _, err := io.WriteString(c.out, text); err != nil {
		return 1
	}
	return 0
}

func tee(c *call) int {
	opts, names, err := c.flags("ai")
	if err != nil {
		return c.usage("%v", err)
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if opts['a'] != "" {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	status := 0
	outs := []io.Writer{c.out}
	for _, n := range names {
		f, err := os.OpenFile(c.path(n), mode, 0o666)
		if err != nil {
			status = c.fail(n, err)
			continue
		}
		defer f.Close()
		outs = append(outs, f)
	}
	if _, err := io.Copy(io.MultiWriter(outs...), c.in); err != nil {
		return c.fail("", err)
	}
	return status
}

// count reads the number of lines or bytes: "-n 5", "-5"; the sign is told.
func count(text string) (n int64, plus bool, err error) {
	plus = strings.HasPrefix(text, "+")
	n, err = strconv.ParseInt(strings.TrimLeft(text, "+-"), 10, 64)
	if err != nil {
		err = fmt.Errorf("invalid number '%s'", text)
	}
	return n, plus, err
}

// oldCount turns the old form "-5" into "-n5".
func oldCount(args []string) []string {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
		return append([]string{"-n" + args[0][1:]}, args[1:]...)
	}
	return args
}

func head(c *call) int {
	c.args = oldCount(c.args)
	opts, names, err := c.flags("n:c:qv")
	if err != nil {
		return c.usage("%v", err)
	}
	lines, bytesOnly := "10", false
	if v, ok := opts['n']; ok {
		lines = v
	}
	if v, ok := opts['c']; ok {
		lines, bytesOnly = v, true
	}
	n, _, err := count(lines)
	if err != nil {
		return c.usage("%v", err)
	}
	first := true
	return c.eachInput(names, func(name string, r io.Reader) error {
		c.heading(name, len(names) > 1 && opts['q'] == "" || opts['v'] != "", &first)
		if bytesOnly {
			_, err := io.CopyN(c.out, r, n)
			if err == io.EOF {
				err = nil
			}
			return err
		}
		br := bufio.NewReader(r)
		for range n {
			line, err := br.ReadSlice('\n')
			for err == bufio.ErrBufferFull {
				_, _ = c.out.Write(line)
				line, err = br.ReadSlice('\n')
			}
			if _, werr := c.out.Write(line); werr != nil {
				return werr
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *call) heading(name string, wanted bool, first *bool) {
	if !wanted {
		return
	}
	if !*first {
		fmt.Fprintln(c.out)
	}
	*first = false
	fmt.Fprintf(c.out, "==> %s <==\n", name)
}

func tail(c *call) int {
	c.args = oldCount(c.args)
	opts, names, err := c.flags("n:c:fFqv")
	if err != nil {
		return c.usage("%v", err)
	}
	want, byBytes := "10", false
	if v, ok := opts['n']; ok {
		want = v
	}
	if v, ok := opts['c']; ok {
		want, byBytes = v, true
	}
	n, plus, err := count(want)
	if err != nil {
		return c.usage("%v", err)
	}
	follow := opts['f'] != "" || opts['F'] != ""
	first := true
	return c.eachInput(names, func(name string, r io.Reader) error {
		c.heading(name, len(names) > 1 && opts['q'] == "" || opts['v'] != "", &first)
		if err := lastPart(c.out, r, n, plus, byBytes); err != nil || !follow || name == "-" {
			return err
		}
		return c.follow(r)
	})
}

// follow copies what is appended to a file until the call ends.
func (c *call) follow(r io.Reader) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	f, _ := r.(*os.File)
	for {
		n, err := io.Copy(c.out, r)
		if err != nil {
			return err
		}
		if fi, err := f.Stat(); err == nil && n == 0 {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && fi.Size() < at { // cut short
				_, _ = f.Seek(0, io.SeekStart)
			}
		}
		select {
		case <-c.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// maxTail bounds the memory tail holds.
const maxTail = 64 << 20

func lastPart(out io.Writer, r io.Reader, n int64, plus, byBytes bool) error {
	br := bufio.NewReaderSize(r, 64<<10)
	if plus { // from the nth line or byte on
		for i := int64(1); i < n; i++ {
			var err error
			if byBytes {
				_, err = br.ReadByte()
			} else {
				_, err = br.ReadString('\n')
			}
			if err != nil {
				return nil
			}
		}
		_, err := io.Copy(out, br)
		return err
	}
	var kept [][]byte
	size := 0
	for {
		var piece []byte
		var err error
		if byBytes {
			piece = make([]byte, 4096)
			var got int
			got, err = br.Read(piece)
			piece = piece[:got]
		} else {
			piece, err = br.ReadBytes('\n')
		}
		if len(piece) > 0 {
			kept = append(kept, piece)
			size += len(piece)
		}
		for len(kept) > 0 && (size > maxTail || !byBytes && int64(len(kept)) > n || byBytes && int64(size-len(kept[0])) >= n) {
			size -= len(kept[0])
			kept = kept[1:]
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	all := bytes.Join(kept, nil)
	if byBytes && int64(len(all)) > n {
		all = all[int64(len(all))-n:]
	}
	_, err := out.Write(all)
	return err
}

func wc(c *call) int {
	opts, names, err := c.flags("lwcm")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(opts) == 0 {
		opts['l'], opts['w'], opts['c'] = "true", "true", "true"
	}
	var total [4]int64
	show := func(n [4]int64, name string) {
		var cols []string
		for i, k := range []byte("lwmc") {
			if opts[k] != "" {
				cols = append(cols, strconv.FormatInt(n[i], 10))
			}
		}
		if name != "-" {
			cols = append(cols, name)
		}
		fmt.Fprintln(c.out, strings.Join(cols, " "))
	}
	status := c.eachInput(names, func(name string, r io.Reader) error {
		var n [4]int64
		inWord := false
		br := bufio.NewReader(r)
		for {
			b, err := br.ReadByte()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			n[3]++
			if utf8.RuneStart(b) {
				n[2]++
			}
			if b == '\n' {
				n[0]++
			}
			space := b == ' ' || b >= '\t' && b <= '\r'
			if !space && !inWord {
				n[1]++
			}
			inWord = !space
		}
		for i := range n {
			total[i] += n[i]
		}
		show(n, name)
		return nil
	})
	if len(names) > 1 {
		show(total, "total")
	}
	return status
}

// grep knows Go's regular expressions, which are close to extended ones.
func grep(c *call) int {
	opts, args, err := c.flags("ivncqlEFohHwxe:")
	if err != nil {
		return c.usage("%v", err)
	}
	pattern, ok := opts['e']
	if !ok {
		if len(args) == 0 {
			return c.usage("no pattern")
		}
		pattern, args = args[0], args[1:]
	}
	re, err := compile(pattern, opts)
	if err != nil {
		return c.usage("%v", err)
	}
	found := false
	withName := (len(args) > 1 || opts['H'] != "") && opts['h'] == ""
	status := c.eachInput(args, func(name string, r io.Reader) error {
		prefix := ""
		if withName {
			prefix = name + ":"
		}
		n, err := c.grepOne(re, opts, prefix, r)
		found = found || n > 0
		switch {
		case opts['q'] != "":
		case opts['l'] != "" && n > 0:
			fmt.Fprintln(c.out, name)
		case opts['c'] != "":
			fmt.Fprintf(c.out, "%s%d\n", prefix, n)
		}
		return err
	})
	switch {
	case status != 0 && !(opts['q'] != "" && found):
		return 2
	case !found:
		return 1
	}
	return 0
}

func compile(pattern string, opts map[byte]string) (*regexp.Regexp, error) {
	if opts['F'] != "" {
		pattern = regexp.QuoteMeta(pattern)
	} else if opts['E'] == "" {
		// In basic expressions the backslashed ones are the operators.
		pattern = strings.NewReplacer(`\|`, "|", `\(`, "(", `\)`, ")", `\+`, "+", `\?`, "?", `\{`, "{", `\}`, "}",
			`\\`, `\\`, "|", `\|`, "(", `\(`, ")", `\)`, "+", `\+`, "?", `\?`, "{", `\{`, "}", `\}`).Replace(pattern)
	}
	if opts['w'] != "" {
		pattern = `\b(?:` + pattern + `)\b`
	}
	if opts['x'] != "" {
		pattern = `^(?:` + pattern + `)$`
	}
	if opts['i'] != "" {
		pattern = "(?i)" + pattern
	}
	return regexp.Compile(pattern)
}

func (c *call) grepOne(re *regexp.Regexp, opts map[byte]string, prefix string, r io.Reader) (int, error) {
	br := bufio.NewReader(r)
	n := 0
	quiet := opts['q'] != "" || opts['l'] != "" || opts['c'] != ""
	for number := 1; ; number++ {
		line, err := br.ReadString('\n')
		if line == "" && err == io.EOF {
			return n, nil
		}
		if err != nil && err != io.EOF {
			return n, err
		}
		line = strings.TrimSuffix(line, "\n")
		if re.MatchString(line) == (opts['v'] != "") {
			continue
		}
		n++
		if opts['q'] != "" {
			return n, nil
		}
		if quiet {
			continue
		}
		lead := prefix
		if opts['n'] != "" {
			lead += strconv.Itoa(number) + ":"
		}
		if opts['o'] != "" {
			for _, m := range re.FindAllString(line, -1) {
				fmt.Fprintln(c.out, lead+m)
			}
			continue
		}
		if _, err := fmt.Fprintln(c.out, lead+line); err != nil {
			return n, err
		}
	}
}
