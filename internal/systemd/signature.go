package systemd

import "strings"

// signatures are the D-Bus types of the properties that plans use. PID 1 answers
// a wrong type with "invalid argument" and no name, and only in the VM; with the
// table a unit test finds it. Names that are not here are passed as they are.
var signatures = map[string]string{
	"Description": "s", "Slice": "s", "CollectMode": "s", "OOMPolicy": "s", "Type": "s",
	"KillMode": "s", "NotifyAccess": "s", "Restart": "s", "RestartMode": "s", "DevicePolicy": "s", "What": "s", "Where": "s",
	"Options": "s", "WorkingDirectory": "s", "User": "s", "Group": "s", "StandardInput": "s",
	"StandardOutput": "s", "StandardError": "s", "SyslogIdentifier": "s", "DelegateSubgroup": "s",
	"ExitType": "s", "LogNamespace": "s", "FailureAction": "s", "ManagedOOMSwap": "s", "ManagedOOMMemoryPressure": "s", "PIDFile": "s",

	"DefaultDependencies": "b", "StopWhenUnneeded": "b", "RefuseManualStop": "b", "IgnoreOnIsolate": "b",
	"RemainAfterExit": "b", "Delegate": "b", "PrivateMounts": "b", "SendSIGKILL": "b", "SendSIGHUP": "b",
	"CPUAccounting": "b", "MemoryAccounting": "b", "TasksAccounting": "b", "IOAccounting": "b",
	"AddRef": "b", "NoNewPrivileges": "b", "LazyUnmount": "b", "ForceUnmount": "b",
	"OOMScoreAdjust": "i", "KillSignal": "i", "FinalKillSignal": "i", "RestartKillSignal": "i",

	"CPUWeight": "t", "CPUQuotaPerSecUSec": "t", "CPUQuotaPeriodUSec": "t", "MemoryMin": "t", "MemoryLow": "t",
	"MemoryHigh": "t", "MemoryMax": "t", "MemorySwapMax": "t", "MemoryZSwapMax": "t", "TasksMax": "t", "IOWeight": "t",
	"TimeoutStartUSec": "t", "TimeoutStopUSec": "t", "TimeoutUSec": "t", "TimeoutAbortUSec": "t",
	"RuntimeMaxUSec": "t", "WatchdogUSec": "t", "RestartUSec": "t", "StartLimitIntervalUSec": "t", "MountFlags": "t",
	"JobTimeoutUSec": "t", "JobRunningTimeoutUSec": "t",
	"FileDescriptorStoreMax": "u", "UMask": "u", "DirectoryMode": "u",

	"Environment": "as", "PassEnvironment": "as", "UnsetEnvironment": "as", "DelegateControllers": "as",
	"Requires": "as", "Requisite": "as", "Wants": "as", "BindsTo": "as", "PartOf": "as", "Upholds": "as",
	"After": "as", "Before": "as", "Conflicts": "as", "OnFailure": "as", "OnSuccess": "as",
	"RequiresMountsFor": "as", "WantsMountsFor": "as", "Documentation": "as",

	"AllowedCPUs": "ay", "AllowedMemoryNodes": "ay",
	"DeviceAllow": "a(ss)",
}

func signatureOf(name string) (string, bool) {
	switch {
	case strings.HasPrefix(name, "Limit"): // LimitNOFILE, LimitNOFILESoft, …
		return "t", true
	case strings.HasPrefix(name, "Exec"): // ExecStart, ExecStopPost, …
		return "a(sasb)", !strings.HasSuffix(name, "Ex")
	}
	s, ok := signatures[name]
	return s, ok
}
