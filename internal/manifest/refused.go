package manifest

// Why fields of Kubernetes are refused. A reason tells what to do instead where
// there is something.
const (
	needsKubelet   = "nothing stays behind to watch the pod: run it under a kubelet"
	needsCluster   = "it needs a cluster"
	needsScheduler = "there is no scheduler: the pod runs on this machine"
	setByServer    = "it is set by an API server: remove it"
	notYet         = "not built yet"
)

func (Pod) refused() map[string]string {
	return map[string]string{"status": setByServer}
}

func (Metadata) refused() map[string]string {
	return map[string]string{
		"generateName":               "give the pod a name",
		"uid":                        setByServer,
		"selfLink":                   setByServer,
		"resourceVersion":            setByServer,
		"generation":                 setByServer,
		"creationTimestamp":          setByServer,
		"deletionTimestamp":          setByServer,
		"deletionGracePeriodSeconds": setByServer,
		"managedFields":              setByServer,
		"ownerReferences":            needsCluster,
		"finalizers":                 needsCluster,
	}
}

func (Spec) refused() map[string]string {
	return map[string]string{
		"activeDeadlineSeconds":     needsKubelet,
		"affinity":                  needsScheduler,
		"ephemeralContainers":       "use gantry exec",
		"evictionInterceptors":      needsCluster,
		"hostAliases":               notYet,
		"hostnameOverride":          "use hostname",
		"imagePullSecrets":          "use gantry's auth.json, see containers-auth.json(5)",
		"nodeName":                  needsScheduler,
		"nodeSelector":              needsScheduler,
		"overhead":                  needsScheduler,
		"preemptionPolicy":          needsScheduler,
		"priority":                  needsScheduler,
		"priorityClassName":         needsScheduler,
		"readinessGates":            needsCluster,
		"resourceClaims":            needsCluster,
		"resources":                 "set the resources of each container",
		"schedulerName":             needsScheduler,
		"schedulingGates":           needsScheduler,
		"schedulingGroup":           needsScheduler,
		"serviceAccount":            needsCluster,
		"serviceAccountName":        needsCluster,
		"setHostnameAsFQDN":         "use hostname",
		"subdomain":                 needsCluster,
		"tolerations":               needsScheduler,
		"topologySpreadConstraints": needsScheduler,
		"workloadRef":               needsScheduler,
	}
}

func (Container) refused() map[string]string {
	return map[string]string{
		"envFrom":                  "write the variables under env",
		"lifecycle":                needsKubelet,
		"livenessProbe":            "probes need a kubelet",
		"readinessProbe":           "probes need a kubelet",
		"startupProbe":             "probes need a kubelet",
		"resizePolicy":             needsKubelet,
		"restartPolicyRules":       needsKubelet,
		"terminationMessagePath":   needsKubelet,
		"terminationMessagePolicy": needsKubelet,
		"volumeDevices":            needsCluster,
	}
}

func (EnvSource) refused() map[string]string {
	return map[string]string{
		"configMapKeyRef":  needsCluster + "; write the value",
		"secretKeyRef":     needsCluster + "; write the value",
		"resourceFieldRef": notYet,
		"fileKeyRef":       notYet,
	}
}

func (Resources) refused() map[string]string {
	return map[string]string{"claims": needsCluster}
}

func (VolumeMount) refused() map[string]string {
	return map[string]string{
		"subPath":     "mount the directory itself with a hostPath volume",
		"subPathExpr": "mount the directory itself with a hostPath volume",
	}
}

func (Volume) refused() map[string]string {
	out := map[string]string{"image": notYet}
	for _, name := range []string{
		"awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI", "ephemeral",
		"fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "iscsi", "nfs", "persistentVolumeClaim",
		"photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd", "scaleIO", "secret", "storageos", "vsphereVolume",
	} {
		out[name] = "volumes are emptyDir or hostPath"
	}
	return out
}

func (PodSecurity) refused() map[string]string {
	return map[string]string{
		"fsGroupChangePolicy": "it is for volumes of a cluster",
		"seLinuxChangePolicy": "it is for volumes of a cluster",
		"windowsOptions":      "this is Linux",
	}
}

func (ContainerSecurity) refused() map[string]string {
	return map[string]string{"windowsOptions": "this is Linux"}
}
