// Package english keeps kubectl's translations from being unpacked by every
// start of the binary as something else: kubectl asks for them while its
// packages are initialized, 4 MB and several milliseconds. It must be imported
// where kubectl is; its path sorts before kubectl's, so it is initialized
// first, as kubectl's i18n package asks of whoever replaces its loader.
package english

import (
	"os"
	"path/filepath"

	"k8s.io/kubectl/pkg/util/i18n"
)

// Installed is nil when kubectl's loader was replaced in time.
var Installed = i18n.SetLoadTranslationsFunc(func() error {
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == "kubectl" || len(os.Args) > 1 && os.Args[1] == "kubectl" {
		return i18n.LoadTranslations("kubectl", nil)
	}
	return nil
})
