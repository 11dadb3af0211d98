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

// selinux tells whether the policy has labels for containers, and how to ask it for one;
// nil where SELinux is off. Under a policy without them no container could be started
// with one: then containers get none, and who asks for one is refused.
func selinux(log *slog.Logger) (on bool, known func(string) error) {
	if _, err := os.Stat(selinuxFS + "/enforce"); err != nil {
		return false, nil
	}
	for _, c := range contexts {
		if err := knownContext(c); err != nil {
			if log != nil {
				log.Warn("SELinux is on, but containers get no labels: the policy lacks those of containers", "label", c, "err", err)
			}
			return false, knownContext
		}
	}
	return true, knownContext
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
