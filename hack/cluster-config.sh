#!/usr/bin/env bash
# What hack/cluster makes for a node before it starts it: the configuration of its parts, and its cgroups. It is
# meant to be sourced by that script, whose names for things it uses.

# --- a node's configuration ---------------------------------------------------------------------

configure_node() {
  local snapshotter=overlayfs
  # The kernel does not put one overlay upon another.
  if [[ $(stat -f -c %T -- "$2") == overlayfs ]]; then snapshotter=native; fi
  mkdir -p -- "$2/cni" "$2/var-lib" "$2/var-log"
  make_node_kubeconfig "$1" "$2"
  cat >"$2/containerd.toml" <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "slicebw.io/pause:1.20.2"
# Without CAP_SYS_RESOURCE, as in many a container or sandbox, no pod would start.
restrict_oom_score_adj = true
# Its profile would be loaded into the machine's kernel.
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "$snapshotter"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "$DIR/nodes/packaged/usr/sbin/runc"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$DIR/nodes/packaged/usr/lib/cni"
conf_dir = "$2/cni"
END
  cat >"$2/cni/pods.conflist" <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pod_network "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
END
  cat >"$2/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $DIR/control-plane/pki/clients.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
# A kubelet ends what it finds in cgroups of pods that it does not know: none has but its own to look into.
cgroupRoot: $(cgroup "$1")
enforceNodeAllocatable: []
failSwapOn: false
# The disk is the machine's, and how full it is for others to care.
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
# On cluster-node's copies of them, not the kernel's own.
protectKernelDefaults: true
resolvConf: /dev/null
volumePluginDir: /var/lib/kubelet/volume-plugins
END
}

# A node is whom its certificate says: system:node:NAME, which the Node authorizer lets see its own pods.
make_node_kubeconfig() {
  local pki=$DIR/control-plane/pki folder=$2
  [[ ! -s $folder/kubeconfig || $pki/clients.crt -nt $folder/kubeconfig ]] || return 0
  (
    cd "$folder"
    openssl ecparam -name prime256v1 -genkey -noout -out client.key
    openssl req -new -config "$pki/openssl.cnf" -key client.key -subj "/O=system:nodes/CN=system:node:$1" -out client.csr
    openssl x509 -req -in client.csr -CA "$pki/clients.crt" -CAkey "$pki/clients.key" -set_serial "$((100 + ${1#node-}))" \
      -days 3650 -extfile "$pki/openssl.cnf" -extensions server -out client.crt
  ) >"$folder/openssl.log" 2>&1 || {
    cat -- "$folder/openssl.log" >&2
    die "openssl could not make the certificate of $1"
  }
  cat >"$folder/kubeconfig.new" <<END
apiVersion: v1
kind: Config
clusters:
- name: slicebw
  cluster: {server: "https://$(api_endpoint)", certificate-authority: $pki/ca.crt}
users:
- name: kubelet
  user:
    client-certificate-data: $(base64 -w 0 "$folder/client.crt")
    client-key-data: $(base64 -w 0 "$folder/client.key")
contexts:
- name: slicebw
  context: {cluster: slicebw, user: kubelet}
current-context: slicebw
END
  rm -f -- "$folder"/client.* "$folder/openssl.log"
  mv -- "$folder/kubeconfig.new" "$folder/kubeconfig"
}

# --- cgroups ------------------------------------------------------------------------------------

cgroup() { echo "/slicebw-$(number)-$1"; }

# The node's cgroup in every hierarchy of the machine: several with version 1, one with version 2.
cgroup_folders() {
  local hierarchy
  if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
    echo "/sys/fs/cgroup$(cgroup "$1")"
  else
    for hierarchy in /sys/fs/cgroup/*/; do echo "${hierarchy%/}$(cgroup "$1")"; done
  fi
}

make_cgroups() {
  local folder controller
  if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
    # kubelet takes a cgroup for missing where it has not all of these that the machine has.
    for controller in cpu cpuset hugetlb memory pids; do
      ! grep -qw "$controller" /sys/fs/cgroup/cgroup.controllers ||
        grep -qw "$controller" /sys/fs/cgroup/cgroup.subtree_control ||
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
  fi
  # The node's own processes stay where this shell is; in here are its pods.
  for folder in $(cgroup_folders "$1"); do
    [[ ! -w $(dirname -- "$folder") ]] || mkdir -p -- "$folder"
  done
}

remove_cgroups() {
  local folder
  [[ -f $DIR/network ]] || return 0
  for folder in $(cgroup_folders "$1"); do
    wait_until 20 "the processes of $1 to end" remove_tree "$folder" || die "cannot remove $folder; who is in there?"
  done
}

remove_tree() {
  [[ -d $1 ]] || return 0
  find "$1" -depth -type d -exec rmdir -- {} + 2>/dev/null
}
