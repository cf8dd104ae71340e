package box

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func ls(c *call) int {
	opts, names, err := c.flags("laA1dhRrtSniF")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	status := 0
	var files, dirs []string
	for _, n := range names {
		fi, err := os.Stat(c.path(n))
		if err != nil {
			if fi, err = os.Lstat(c.path(n)); err != nil {
				status = c.fail(n, err)
				continue
			}
		}
		if fi.IsDir() && opts['d'] == "" {
			dirs = append(dirs, n)
		} else {
			files = append(files, n)
		}
	}
	var rows []row
	for _, n := range files {
		rows = append(rows, newRow(n, c.path(n)))
	}
	c.list(rows, opts)
	for i := 0; i < len(dirs); i++ {
		d := dirs[i]
		if len(names) > 1 || opts['R'] != "" {
			if i > 0 || len(files) > 0 {
				fmt.Fprintln(c.out)
			}
			fmt.Fprintf(c.out, "%s:\n", d)
		}
		entries, err := os.ReadDir(c.path(d))
		if err != nil {
			status = c.fail(d, err)
			continue
		}
		rows = rows[:0]
		if opts['a'] != "" {
			rows = append(rows, newRow(".", c.path(d)), newRow("..", filepath.Join(c.path(d), "..")))
		}
		var below []string
		for _, e := range entries {
			if e.Name()[0] == '.' && opts['a'] == "" && opts['A'] == "" {
				continue
			}
			rows = append(rows, newRow(e.Name(), filepath.Join(c.path(d), e.Name())))
			if e.IsDir() && opts['R'] != "" {
				below = append(below, filepath.Join(d, e.Name()))
			}
		}
		dirs = slices.Insert(dirs, i+1, below...)
		c.list(rows, opts)
	}
	return status
}

type row struct {
	name, path string
	info       fs.FileInfo
}

func newRow(name, path string) row {
	fi, _ := os.Lstat(path)
	return row{name, path, fi}
}

func (c *call) list(rows []row, opts map[byte]string) {
	slices.SortStableFunc(rows, func(a, b row) int {
		order := strings.Compare(a.name, b.name)
		if a.info != nil && b.info != nil {
			switch {
			case opts['t'] != "":
				order = b.info.ModTime().Compare(a.info.ModTime())
			case opts['S'] != "":
				order = int(b.info.Size() - a.info.Size())
			}
		}
		if opts['r'] != "" {
			return -order
		}
		return order
	})
	for _, r := range rows {
		name := r.name
		if r.info == nil { // gone since
			continue
		}
		if opts['F'] != "" && r.info.IsDir() {
			name += "/"
		}
		if opts['i'] != "" {
			fmt.Fprintf(c.out, "%d ", r.info.Sys().(*syscall.Stat_t).Ino)
		}
		if opts['l'] == "" && opts['n'] == "" {
			fmt.Fprintln(c.out, name)
			continue
		}
		if target, err := os.Readlink(r.path); err == nil {
			name += " -> " + target
		}
		st := r.info.Sys().(*syscall.Stat_t)
		owner, group := strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
		if opts['n'] == "" {
			owner, group = userName(st.Uid), groupName(st.Gid)
		}
		fmt.Fprintf(c.out, "%s %3d %-8s %-8s %9s %s %s\n", mode(r.info.Mode()), st.Nlink, owner, group, size(r.info.Size(), opts['h'] != ""), when(r.info.ModTime()), name)
	}
}

// mode is the ten letters of ls -l.
func mode(m fs.FileMode) string {
	letters := []byte("----------")
	for _, t := range []struct {
		bit    fs.FileMode
		letter byte
	}{{fs.ModeDir, 'd'}, {fs.ModeSymlink, 'l'}, {fs.ModeNamedPipe, 'p'}, {fs.ModeSocket, 's'}, {fs.ModeDevice, 'b'}, {fs.ModeCharDevice, 'c'}} {
		if m&t.bit != 0 {
			letters[0] = t.letter
		}
	}
	for i := range 9 {
		if m&(1<<(8-i)) != 0 {
			letters[i+1] = "rwx"[i%3]
		}
	}
	for _, s := range []struct {
		bit    fs.FileMode
		at     int
		letter byte
	}{{fs.ModeSetuid, 3, 's'}, {fs.ModeSetgid, 6, 's'}, {fs.ModeSticky, 9, 't'}} {
		if m&s.bit != 0 {
			if letters[s.at] == '-' {
				s.letter -= 'a' - 'A'
			}
			letters[s.at] = s.letter
		}
	}
	return string(letters)
}

func size(n int64, human bool) string {
	if !human || n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	f := float64(n)
	for _, unit := range "KMGTP" {
		if f /= 1024; f < 1024 {
			return fmt.Sprintf("%.1f%c", f, unit)
		}
	}
	return fmt.Sprintf("%.0fE", f/1024)
}

// when shows the year of what is older than half a year, as ls does.
func when(t time.Time) string {
	if age := time.Since(t); age > 182*24*time.Hour || age < -time.Hour {
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	if uid == 0 {
		return "root"
	}
	return strconv.Itoa(int(uid))
}

func groupName(gid uint32) string {
	if g, err := user.LookupGroupId(strconv.Itoa(int(gid))); err == nil {
		return g.Name
	}
	if gid == 0 {
		return "root"
	}
	return strconv.Itoa(int(gid))
}

func mkdir(c *call) int {
	opts, names, err := c.flags("pm:")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(names) == 0 {
		return c.usage("missing operand")
	}
	perm := uint64(0o777)
	if m, ok := opts['m']; ok {
		if perm, err = strconv.ParseUint(m, 8, 12); err != nil {
			return c.usage("invalid mode '%s'", m)
		}
	}
	status := 0
	for _, n := range names {
		make := os.Mkdir
		if opts['p'] != "" {
			make = os.MkdirAll
		}
		err := make(c.path(n), fs.FileMode(perm))
		if err == nil && opts['m'] != "" {
			err = os.Chmod(c.path(n), fs.FileMode(perm))
		}
		if err != nil {
			status = c.fail(n, err)
		}
	}
	return status
}

func rm(c *call) int {
	opts, names, err := c.flags("rRf")
	if err != nil {
		return c.usage("%v", err)
	}
	force := opts['f'] != ""
	if len(names) == 0 && !force {
		return c.usage("missing operand")
	}
	status := 0
	for _, n := range names {
		if base := filepath.Base(n); base == "." || base == ".." || c.path(n) == "/" {
			status = c.fail(n, errors.New("refusing to remove this folder"))
			continue
		}
		fi, err := os.Lstat(c.path(n))
		switch {
		case err != nil:
		case fi.IsDir() && opts['r'] == "" && opts['R'] == "":
			err = syscall.EISDIR
		case fi.IsDir():
			err = os.RemoveAll(c.path(n))
		default:
			err = os.Remove(c.path(n))
		}
		if err != nil && !(force && errors.Is(err, fs.ErrNotExist)) {
			status = c.fail(n, err)
		}
	}
	return status
}

func touch(c *call) int {
	opts, names, err := c.flags("cam")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(names) == 0 {
		return c.usage("missing operand")
	}
	status := 0
	for _, n := range names {
		now := time.Now()
		err := os.Chtimes(c.path(n), now, now)
		if errors.Is(err, fs.ErrNotExist) {
			if opts['c'] != "" {
				continue
			}
			var f *os.File
			if f, err = os.OpenFile(c.path(n), os.O_CREATE|os.O_WRONLY, 0o666); err == nil {
				err = f.Close()
			}
		}
		if err != nil {
			status = c.fail(n, err)
		}
	}
	return status
}

// tarCmd creates, extracts and lists archives: what `kubectl cp` asks of it.
func tarCmd(c *call) int {
	if len(c.args) > 0 && c.args[0] != "" && c.args[0][0] != '-' { // the old form: tar xf -
		c.args = slices.Clone(c.args)
		c.args[0] = "-" + c.args[0]
	}
	c.args = slices.DeleteFunc(slices.Clone(c.args), func(a string) bool { return a == "--no-same-permissions" || a == "--no-same-owner" })
	opts, names, err := c.flags("cxtzvpmokf:C:")
	if err != nil {
		return c.usage("%v", err)
	}
	if dir, ok := opts['C']; ok {
		c.dir = c.path(dir)
	}
	archive, ok := opts['f']
	if !ok {
		archive = "-"
	}
	switch {
	case opts['c'] != "" && opts['x'] == "" && opts['t'] == "":
		err = c.tarCreate(archive, opts, names)
	case opts['c'] == "" && (opts['x'] != "" || opts['t'] != ""):
		err = c.tarRead(archive, opts, names)
	default:
		return c.usage("say one of -c, -x and -t")
	}
	if err != nil {
		return c.fail("", err)
	}
	return 0
}

func (c *call) tarCreate(archive string, opts map[byte]string, names []string) (err error) {
	out := c.out
	if archive != "-" {
		f, err := os.Create(c.path(archive))
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		defer f.Close()
		out = f
	}
	if opts['z'] != "" {
		zw := gzip.NewWriter(out)
		defer func() { err = errors.Join(err, zw.Close()) }()
		out = zw
	}
	tw := tar.NewWriter(out)
	for _, n := range names {
		err := filepath.WalkDir(c.path(n), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(c.path(n), p)
			if err != nil {
				return err
			}
			name := filepath.Join(n, rel)
			if n == "." || strings.HasPrefix(n, "./") {
				name = "./" + strings.TrimPrefix(name, "./")
			}
			if opts['v'] != "" {
				fmt.Fprintln(c.err, name)
			}
			return tarAdd(tw, strings.TrimLeft(name, "/"), p)
		})
		if err != nil {
			return err
		}
	}
	return tw.Close()
}

func tarAdd(tw *tar.Writer, name, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name = name
	if fi.IsDir() {
		h.Name += "/"
	}
	if err := tw.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(tw, f, h.Size)
	return err
}

func (c *call) tarRead(archive string, opts map[byte]string, only []string) error {
	in := c.in
	if archive != "-" {
		f, err := os.Open(c.path(archive))
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		defer f.Close()
		in = f
	}
	if opts['z'] != "" {
		zr, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		in = zr
	}
	// Names are resolved inside the root, links included: an archive cannot
	// write elsewhere.
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(strings.TrimLeft(h.Name, "/"))
		if len(only) > 0 && !slices.ContainsFunc(only, func(o string) bool {
			return name == filepath.Clean(o) || strings.HasPrefix(name, filepath.Clean(o)+"/")
		}) {
			continue
		}
		if opts['t'] != "" || opts['v'] != "" {
			fmt.Fprintln(c.out, h.Name)
		}
		if opts['t'] != "" || name == "." {
			continue
		}
		if err := extract(root, name, h, tr); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func extract(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if !filepath.IsLocal(name) {
		return errors.New("leads out of the folder")
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	perm := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, perm|0o700); err != nil {
			return err
		}
		return root.Chmod(name, perm|0o700)
	case tar.TypeSymlink, tar.TypeLink, tar.TypeReg:
	default:
		return fmt.Errorf("files of type %q are not extracted", h.Typeflag)
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(filepath.Clean(h.Linkname), name)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Chmod(perm), f.Close())
	if err != nil {
		return err
	}
	return root.Chtimes(name, h.ModTime, h.ModTime)
}
