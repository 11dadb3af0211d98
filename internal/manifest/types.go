package manifest

// Pod is a v1 Pod as far as Gantry runs it.
type Pod struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   Metadata `yaml:"metadata"`
	Spec       Spec     `yaml:"spec"`
}

// Metadata of a Pod.
type Metadata struct {
	Name        string            `yaml:"name"`
	Namespace   string            `yaml:"namespace"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Spec of a Pod.
type Spec struct {
	InitContainers []Container `yaml:"initContainers"`
	Containers     []Container `yaml:"containers"`
	Volumes        []Volume    `yaml:"volumes"`

	RestartPolicy                 string `yaml:"restartPolicy"`
	TerminationGracePeriodSeconds *int64 `yaml:"terminationGracePeriodSeconds"`
	RuntimeClassName              string `yaml:"runtimeClassName"`

	Hostname              string     `yaml:"hostname"`
	DNSPolicy             string     `yaml:"dnsPolicy"`
	DNSConfig             *DNSConfig `yaml:"dnsConfig"`
	HostNetwork           bool       `yaml:"hostNetwork"`
	HostPID               bool       `yaml:"hostPID"`
	HostIPC               bool       `yaml:"hostIPC"`
	HostUsers             *bool      `yaml:"hostUsers"`
	ShareProcessNamespace bool       `yaml:"shareProcessNamespace"`

	SecurityContext PodSecurity `yaml:"securityContext"`

	// These are accepted with the one value that means "nothing to do".
	EnableServiceLinks           *bool `yaml:"enableServiceLinks"`
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
	OS                           OS    `yaml:"os"`
}

// OS a Pod needs.
type OS struct {
	Name string `yaml:"name"`
}

// DNSConfig is what a Pod's resolv.conf says.
type DNSConfig struct {
	Nameservers []string    `yaml:"nameservers"`
	Searches    []string    `yaml:"searches"`
	Options     []DNSOption `yaml:"options"`
}

// DNSOption is one option of resolv.conf.
type DNSOption struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Container of a Pod.
type Container struct {
	Name            string            `yaml:"name"`
	Image           string            `yaml:"image"`
	ImagePullPolicy string            `yaml:"imagePullPolicy"`
	Command         []string          `yaml:"command"`
	Args            []string          `yaml:"args"`
	WorkingDir      string            `yaml:"workingDir"`
	Env             []EnvVar          `yaml:"env"`
	Ports           []Port            `yaml:"ports"`
	Resources       Resources         `yaml:"resources"`
	VolumeMounts    []VolumeMount     `yaml:"volumeMounts"`
	SecurityContext ContainerSecurity `yaml:"securityContext"`
	Stdin           bool              `yaml:"stdin"`
	StdinOnce       bool              `yaml:"stdinOnce"`
	TTY             bool              `yaml:"tty"`
	// RestartPolicy Always makes an init container a sidecar.
	RestartPolicy string `yaml:"restartPolicy"`
}

// EnvVar is one variable of a container's environment.
type EnvVar struct {
	Name      string     `yaml:"name"`
	Value     string     `yaml:"value"`
	ValueFrom *EnvSource `yaml:"valueFrom"`
}

// EnvSource is where a variable's value comes from.
type EnvSource struct {
	FieldRef *FieldRef `yaml:"fieldRef"`
}

// FieldRef names a field of the Pod itself.
type FieldRef struct {
	APIVersion string `yaml:"apiVersion"`
	FieldPath  string `yaml:"fieldPath"`
}

// Port of a container; only those with a hostPort have an effect.
type Port struct {
	Name          string `yaml:"name"`
	ContainerPort int32  `yaml:"containerPort"`
	HostPort      int32  `yaml:"hostPort"`
	HostIP        string `yaml:"hostIP"`
	Protocol      string `yaml:"protocol"`
}

// Resources of a container, by name: cpu, memory, hugepages-2Mi.
type Resources struct {
	Limits   map[string]Quantity `yaml:"limits"`
	Requests map[string]Quantity `yaml:"requests"`
}

// VolumeMount puts a volume into a container.
type VolumeMount struct {
	Name              string `yaml:"name"`
	MountPath         string `yaml:"mountPath"`
	ReadOnly          bool   `yaml:"readOnly"`
	RecursiveReadOnly string `yaml:"recursiveReadOnly"`
	MountPropagation  string `yaml:"mountPropagation"`
}

// Volume of a Pod. One of its sources is set.
type Volume struct {
	Name     string    `yaml:"name"`
	EmptyDir *EmptyDir `yaml:"emptyDir"`
	HostPath *HostPath `yaml:"hostPath"`
}

// EmptyDir is a directory that lives and dies with the Pod.
type EmptyDir struct {
	Medium    string    `yaml:"medium"`
	SizeLimit *Quantity `yaml:"sizeLimit"`
}

// HostPath is a path of the host.
type HostPath struct {
	Path string `yaml:"path"`
	Type string `yaml:"type"`
}

// PodSecurity is the security context of all containers that have no own.
type PodSecurity struct {
	RunAsUser                *int64   `yaml:"runAsUser"`
	RunAsGroup               *int64   `yaml:"runAsGroup"`
	RunAsNonRoot             *bool    `yaml:"runAsNonRoot"`
	SupplementalGroups       []int64  `yaml:"supplementalGroups"`
	SupplementalGroupsPolicy string   `yaml:"supplementalGroupsPolicy"`
	FSGroup                  *int64   `yaml:"fsGroup"`
	Sysctls                  []Sysctl `yaml:"sysctls"`
	Seccomp                  *Profile `yaml:"seccompProfile"`
	AppArmor                 *Profile `yaml:"appArmorProfile"`
	SELinux                  *SELinux `yaml:"seLinuxOptions"`
}

// Sysctl is a kernel parameter of the Pod's namespaces.
type Sysctl struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Profile is a seccomp or AppArmor profile.
type Profile struct {
	Type             string `yaml:"type"`
	LocalhostProfile string `yaml:"localhostProfile"`
}

// SELinux is a process label in parts.
type SELinux struct {
	User  string `yaml:"user"`
	Role  string `yaml:"role"`
	Type  string `yaml:"type"`
	Level string `yaml:"level"`
}

// ContainerSecurity is the security context of one container.
type ContainerSecurity struct {
	Capabilities             Capabilities `yaml:"capabilities"`
	Privileged               bool         `yaml:"privileged"`
	RunAsUser                *int64       `yaml:"runAsUser"`
	RunAsGroup               *int64       `yaml:"runAsGroup"`
	RunAsNonRoot             *bool        `yaml:"runAsNonRoot"`
	ReadOnlyRootFilesystem   bool         `yaml:"readOnlyRootFilesystem"`
	AllowPrivilegeEscalation *bool        `yaml:"allowPrivilegeEscalation"`
	ProcMount                string       `yaml:"procMount"`
	Seccomp                  *Profile     `yaml:"seccompProfile"`
	AppArmor                 *Profile     `yaml:"appArmorProfile"`
	SELinux                  *SELinux     `yaml:"seLinuxOptions"`
}

// Capabilities to add to and drop from the default set.
type Capabilities struct {
	Add  []string `yaml:"add"`
	Drop []string `yaml:"drop"`
}
