# The node's root file system, and the images that it starts with.

# make_root DIRECTORY DEB...: unpacks packages into one tree; busybox stands in for every program that is not there.
make_root() {
  local r=$1 d name suffix; shift
  mkdir -p "$r"/usr/{bin,sbin,lib,lib64} "$r"/{proc,sys,dev,run,tmp,var,etc,opt,root}
  chmod 1777 "$r/tmp"
  ln -sfn ../run "$r/var/run"
  for d in bin sbin lib lib64; do ln -sfn usr/$d "$r/$d"; done
  for d; do
    dpkg-deb --fsys-tarfile "$d" | tar -x -C "$r" --keep-directory-symlink --no-same-owner --exclude=./usr/share/{doc,man,locale,bash-completion} --exclude=gconv
  done
  for name in $("$r/bin/busybox" --list); do
    [ -e "$r/usr/bin/$name" ] || [ -e "$r/usr/sbin/$name" ] || ln -s busybox "$r/usr/bin/$name"
  done
  for name in iptables ip6tables; do for suffix in '' -save -restore; do       # what update-alternatives would do
    [ ! -e "$r/usr/sbin/$name-nft" ] || ln -sfn "$name-nft$suffix" "$r/usr/sbin/$name$suffix"
  done; done
  printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/nonexistent:/bin/false > "$r/etc/passwd"
  printf '%s\n' root:x:0: nogroup:x:65534: > "$r/etc/group"
}

make_node() {
  local deb tmp=$WORK/lone
  rm -rf "$tmp" "$NODE"; mkdir -p "$tmp" "$BIN"
  for deb in "$DIR"/pkg/lone/*.deb; do dpkg-deb -x "$deb" "$tmp"; done
  install -m755 "$(find "$tmp" -path '*/bin/kubectl*' -type f | head -n 1)" "$BIN/kubectl"
  install -m755 "$tmp/usr/bin/etcd" "$BIN/etcd"
  make_root "$NODE" "$DIR"/pkg/*.deb
  mkdir -p "$NODE/usr/local/bin" "$NODE/kube"
  cp -l "$BIN"/* "$NODE/usr/local/bin/"
  say "node's root: $(du -sh "$NODE" | cut -f1)"
}

make_images() {
  local r=$WORK/rootfs
  rm -rf "$r"
  logged image-pause "$HERE/image" pause:1 "$BIN/pause"
  make_root "$r/busybox" "$DIR"/pkg/lone/busybox-static_*.deb
  logged image-busybox "$HERE/image" busybox:1 "$r/busybox" -c '["sh"]'
  make_root "$r/tools" $(sed "s#^#$DIR/pkg/#" "$DIR/pkg/tools.list")
  logged image-tools "$HERE/image" tools:1 "$r/tools" -c '["sh"]'
  rm -rf "$r"
  say "images: $(cd "$DIR/images"; ls | tr '\n' ' ')"
}
