# The node's configuration files, from the templates beside this file, in which @NAME@ stands for a setting.

fill() { # template file: every @NAME@ is replaced by what the variable NAME holds
  local text name
  text=$(< "$HERE/node/$1")
  for name in NODE_NAME NODE_IP POD_CIDR SVC_CIDR DNS_IP REGISTRY SNAPSHOTTER RESTRICT_OOM; do
    text=${text//@$name@/${!name}}
  done
  printf '%s\n' "$text" > "$2"
}

make_config() {
  # overlayfs cannot lie on every file system (another overlay, for one); the native snapshotter copies instead.
  local d=$RUN/var/try
  mkdir -p "$d"/{lower,upper,work,merged}
  SNAPSHOTTER=overlayfs
  unshare -m mount -t overlay overlay -o "lowerdir=$d/lower,upperdir=$d/upper,workdir=$d/work" "$d/merged" 2> /dev/null || SNAPSHOTTER=native
  rm -rf "$d"
  # Without CAP_SYS_RESOURCE a process may not ask to be spared when memory runs out.
  RESTRICT_OOM=false
  (echo -1 > /proc/self/oom_score_adj) 2> /dev/null || RESTRICT_OOM=true

  cp -a "$NODE/etc/." "$RUN/etc/"
  # Where installers of chained plugins expect the directory: it can be written, the rest of the root cannot.
  ln -s /usr/lib/cni/{bridge,host-local,loopback,portmap} "$RUN/opt/cni/bin/"
  fill kubelet.yaml "$RUN/kube/kubelet.yaml"
  fill proxy.yaml "$RUN/kube/proxy.yaml"
  fill dns.yaml "$RUN/kube/dns.yaml"
  fill containerd.toml "$RUN/etc/containerd/config.toml"
  fill bridge.conflist "$RUN/etc/cni/net.d/10-bridge.conflist"
  printf '%s\n' "NODE_NAME=$NODE_NAME" "NODE_IP=$NODE_IP" "SVC_CIDR=$SVC_CIDR" "KUBELET_V=${WEFT_KUBELET_V:-0}" > "$RUN/kube/settings"
  cp "$HERE/node/start" "$RUN/kube/start"
  printf '127.0.0.1 localhost\n%s %s\n' "$NODE_IP" "$NODE_NAME" > "$RUN/etc/hosts"
  : > "$RUN/etc/resolv.conf"
}
