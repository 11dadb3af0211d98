package node

import (
	"fmt"
	"log/slog"
	"os"
)

// contexts are labels of the kinds that apps and their files get.
var contexts = []string{
	"system_u:system_r:container_t:s0:c1,c2", "system_u:system_r:spc_t:s0",
	"system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:container_ro_file_t:s0",
}

// selinuxFS is where the kernel's SELinux is talked to, where it is on.
const selinuxFS = "/sys/fs/selinux"

// selinuxOn tells whether processes have labels, and the policy knows those of
// containers. Under one that does not, no container could be started with them.
func selinuxOn(log *slog.Logger) bool {
	if _, err := os.Stat(selinuxFS + "/enforce"); err != nil {
		return false
	}
	for _, c := range contexts {
		if err := knownContext(c); err != nil {
			if log != nil {
				log.Warn("SELinux is on, but containers get no labels: the policy lacks those of containers", "label", c, "err", err)
			}
			return false
		}
	}
	return true
}

// knownContext asks the kernel whether the policy has such a label.
func knownContext(c string) error {
	f, err := os.OpenFile(selinuxFS+"/context", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("ask for a label: %w", err)
	}
	defer f.Close()
	_, err = f.WriteString(c + "\x00")
	return err
}
