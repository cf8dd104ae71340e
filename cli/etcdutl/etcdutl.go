// Package etcdutl is `skiff etcdutl`: what stock etcdutl does with snapshots,
// for Skiff's data folders.
package etcdutl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/store/etcdapi"
	"github.com/skiff-project/skiff/store/etcdapi/snapshot"
	"github.com/skiff-project/skiff/store/etcdapi/standalone"
)

// Main runs etcdutl with args (without the program name) and returns its exit
// status.
func Main(args []string) int {
	root := command()
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	return 0
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "etcdutl", Short: "Works on snapshots and data folders of Skiff's store", SilenceErrors: true, SilenceUsage: true}
	root.CompletionOptions.DisableDefaultCmd = true
	var format string
	root.PersistentFlags().StringVarP(&format, "write-out", "w", "simple", "output format: simple, table, json or fields")
	group := &cobra.Command{Use: "snapshot <subcommand>", Short: "Manages etcd node snapshots"}
	group.AddCommand(status(&format), restore())
	root.AddCommand(group, &cobra.Command{Use: "version", Short: "Prints the version of etcdutl", Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintf(cmd.OutOrStdout(), "etcdutl version: %s\nAPI version: 3.7\n", etcdapi.Version)
	}})
	return root
}

func status(format *string) *cobra.Command {
	return &cobra.Command{Use: "status <filename>", Short: "Gets backend snapshot status of a given file", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := snapshot.ReadStatus(args[0])
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), *format, st)
		}}
}

func show(out io.Writer, format string, st snapshot.Status) error {
	row := []string{fmt.Sprintf("%x", st.Hash), fmt.Sprint(st.Revision), fmt.Sprint(st.TotalKey), size(st.TotalSize), st.Version}
	switch format {
	case "simple":
		fmt.Fprintln(out, strings.Join(row, ", "))
	case "json":
		return json.NewEncoder(out).Encode(st)
	case "fields":
		fmt.Fprintf(out, "\"Hash\" : %d\n\"Revision\" : %d\n\"Keys\" : %d\n\"Size\" : %d\n\"Version\" : %s\n", st.Hash, st.Revision, st.TotalKey, st.TotalSize, st.Version)
	case "table":
		table(out, []string{"HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"}, row)
	default:
		return errors.New("unsupported output format")
	}
	return nil
}

// table draws one row under its head.
func table(out io.Writer, head, row []string) {
	line := func(left, mid, right string) {
		var parts []string
		for i := range head {
			parts = append(parts, strings.Repeat("─", 2+max(len(head[i]), len(row[i]))))
		}
		fmt.Fprintln(out, left+strings.Join(parts, mid)+right)
	}
	width := func(i int) int { return max(len(head[i]), len(row[i])) }
	line("┌", "┬", "┐")
	for i, v := range head {
		left := (width(i) - len(v)) / 2
		fmt.Fprintf(out, "│ %*s%*s ", left+len(v), v, width(i)-left-len(v), "")
	}
	fmt.Fprintln(out, "│")
	line("├", "┼", "┤")
	for i, v := range row {
		fmt.Fprintf(out, "│ %*s ", width(i), v)
	}
	fmt.Fprintln(out, "│")
	line("└", "┴", "┘")
}

// size is a number of bytes for people, in powers of 1,000 as stock's.
func size(n int64) string {
	if n < 10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for ; v >= 999.5 && unit < 5; unit++ {
		v /= 1000
	}
	name := []string{"B", "kB", "MB", "GB", "TB", "PB"}[unit]
	if v < 10 {
		return fmt.Sprintf("%.1f %s", v, name)
	}
	return fmt.Sprintf("%.0f %s", v, name)
}

func restore() *cobra.Command {
	var r standalone.Restore
	var name string
	var marked, cluster bool
	var ignored string
	var mmap uint64
	cmd := &cobra.Command{Use: "restore <filename> --data-dir <folder>", Short: "Restores an etcd member snapshot to a data folder of Skiff's", Args: cobra.ExactArgs(1)}
	f := cmd.Flags()
	f.StringVar(&r.DataDir, "data-dir", "", "folder to make (default <name>.etcd)")
	f.StringVar(&r.WALDir, "wal-dir", "", "folder of the log, for skiff etcd's flag of the same name (default: in the data folder)")
	f.StringVar(&name, "name", "default", "name of the member")
	f.BoolVar(&r.SkipHashCheck, "skip-hash-check", false, "accept a file without a checksum, copied from a data folder")
	f.Int64Var(&r.BumpRevision, "bump-revision", 0, "how much to raise the revision")
	f.BoolVar(&marked, "mark-compacted", false, "with --bump-revision: mark the raised revision as compacted")
	f.BoolVar(&cluster, "skiff-cluster", false, "make the data folder of skiff up, not that of skiff etcd")
	for _, flag := range []string{"initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls"} {
		f.StringVar(&ignored, flag, "", "accepted, without effect: given to skiff etcd when it starts")
	}
	f.Uint64Var(&mmap, "initial-memory-map-size", 0, "accepted, without effect")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if r.BumpRevision > 0 != marked {
			return errors.New("--mark-compacted required if --bump-revision > 0, and disallowed otherwise")
		}
		if r.DataDir == "" {
			r.DataDir = name + ".etcd"
		}
		if cluster && r.WALDir != "" {
			return errors.New("--wal-dir and --skiff-cluster exclude each other: skiff up keeps its log in its data folder")
		}
		if cluster {
			r.StoreDir, r.SideDir = "etcd", "etcd-side"
		}
		r.File = args[0]
		return r.Run(context.Background())
	}
	return cmd
}
