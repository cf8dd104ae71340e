package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// parseID reads a user or group number strictly: 4294967296 must not become root by
// wrapping round (CVE-2026-46680, CVE-2024-40635), and 4294967295 means "unchanged" to
// the kernel.
func parseID(s string) (uint32, bool) {
	if s == "" || len(s) > 10 || strings.TrimLeft(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return uint32(n), err == nil && n < 1<<32-1
}

// isNumber tells digits from names, also numbers too large to be an id.
func isNumber(s string) bool { return s != "" && strings.TrimLeft(s, "+-0123456789") == "" }

func idOf(v int64) (uint32, error) {
	if v < 0 || v >= 1<<32-1 {
		return 0, fmt.Errorf("id %d is out of range", v)
	}
	return uint32(v), nil
}

type passwd struct {
	name     string
	uid, gid uint32
	home     string
}

// maxUserFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxUserFile = 8 << 20

// readUserFile calls f with each line's fields of a file in the container's root.
func readUserFile(root int, name string, f func([]string)) error {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, name, &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s in the image: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s in the image is not a plain file", name)
	}
	sc := bufio.NewScanner(io.LimitReader(file, maxUserFile))
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		if line := sc.Text(); line != "" && line[0] != '#' {
			f(strings.Split(line, ":"))
		}
	}
	return sc.Err()
}

// lookUser finds a user by name or number.
func lookUser(root int, want string) (*passwd, error) {
	var found *passwd
	err := readUserFile(root, "etc/passwd", func(f []string) {
		if found != nil || len(f) < 4 || f[0] != want && f[2] != want {
			return
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if !ok1 || !ok2 {
			return
		}
		found = &passwd{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			found.home = f[5]
		}
	})
	return found, err
}

// lookGroups returns the number of the group named (or numbered) want, and the
// numbers of all groups that list member.
func lookGroups(root int, want, member string) (gid uint32, found bool, of []uint32, err error) {
	err = readUserFile(root, "etc/group", func(f []string) {
		if len(f) < 3 {
			return
		}
		n, ok := parseID(f[2])
		if !ok {
			return
		}
		if want != "" && !found && (f[0] == want || f[2] == want) {
			gid, found = n, true
		}
		if member != "" && len(f) > 3 && slices.Contains(strings.Split(f[3], ","), member) {
			of = append(of, n)
		}
	})
	return gid, found, of, err
}

// setUser resolves who the container runs as: the pod's choice, else the image's.
func (p *processSpec) setUser(root int, imageUser string, sec *runtimeapi.LinuxContainerSecurityContext) error {
	user, group, _ := strings.Cut(imageUser, ":")
	switch {
	case sec.GetRunAsUser() != nil:
		uid, err := idOf(sec.RunAsUser.Value)
		if err != nil {
			return fmt.Errorf("runAsUser: %w", err)
		}
		user, group = strconv.FormatUint(uint64(uid), 10), ""
	case sec.GetRunAsUsername() != "":
		user, group = sec.RunAsUsername, ""
		if isNumber(user) {
			return fmt.Errorf("user name %q is a number", user)
		}
	case sec.GetRunAsGroup() != nil:
		return errors.New("runAsGroup is specified without runAsUser")
	}
	if user == "" {
		user = "0"
	}
	entry, err := lookUser(root, user)
	if err != nil {
		return err
	}
	name := ""
	p.home = "/"
	switch {
	case entry != nil:
		p.UID, p.GID, name = entry.uid, entry.gid, entry.name
		if entry.home != "" {
			p.home = entry.home
		}
	case isNumber(user):
		uid, ok := parseID(user)
		if !ok {
			return fmt.Errorf("user %q is not a valid user id", user)
		}
		p.UID = uid
	default:
		return fmt.Errorf("unable to find user %s: no matching entries in passwd file", user)
	}
	if group != "" {
		gid, found, _, err := lookGroups(root, group, "")
		if err != nil {
			return err
		}
		if !found {
			if gid, found = parseID(group); !found {
				return fmt.Errorf("unable to find group %s: no matching entries in group file", group)
			}
		}
		p.GID = gid
	}
	if sec.GetRunAsGroup() != nil {
		if p.GID, err = idOf(sec.RunAsGroup.Value); err != nil {
			return fmt.Errorf("runAsGroup: %w", err)
		}
	}
	return p.setGroups(root, name, sec)
}

// setGroups: Merge adds the groups the image gives the user, Strict does not.
func (p *processSpec) setGroups(root int, name string, sec *runtimeapi.LinuxContainerSecurityContext) error {
	groups := []int{int(p.GID)}
	if sec.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && name != "" {
		_, _, of, err := lookGroups(root, "", name)
		if err != nil {
			return err
		}
		for _, g := range of {
			groups = append(groups, int(g))
		}
	}
	for _, g := range sec.GetSupplementalGroups() {
		id, err := idOf(g)
		if err != nil {
			return fmt.Errorf("supplementalGroups: %w", err)
		}
		groups = append(groups, int(id))
	}
	slices.Sort(groups)
	p.Groups = slices.Compact(groups)
	return nil
}

func (p *processSpec) user() *runtimeapi.ContainerUser {
	u := &runtimeapi.LinuxContainerUser{Uid: int64(p.UID), Gid: int64(p.GID)}
	for _, g := range p.Groups {
		u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
	}
	return &runtimeapi.ContainerUser{Linux: u}
}
