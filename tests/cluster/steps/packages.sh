# Packages by apt, with lists and a package database of its own: apt then resolves whole closures, whatever this
# machine has installed, and changes nothing on it. Proxies and credentials stay those of the system's configuration.
RELEASE=bookworm
NODE_PACKAGES=(libc6 containerd runc containernetworking-plugins iptables nftables conntrack iproute2 busybox coreutils findutils procps)
TOOLS_PACKAGES=(libc6 iptables nftables conntrack iproute2 busybox)
LONE_PACKAGES=(etcd-server kubernetes-client busybox-static)      # linked statically: of use without what they depend on
# of the closures, what only the packages' own installation scripts would run
UNUSED='^(perl|libperl|lib[a-z0-9-]*-perl_|usrmerge_|dpkg_|debconf_|init-system-|tar_|libgdbm)'

mirror() {
  local found=${WEFT_KUBE_MIRROR:-}
  # The release itself where apt knows it; else any Debian mirror, which has all releases.
  [ -n "$found" ] || found=$(apt-get indextargets --format '$(RELEASE)|$(LABEL)|$(COMPONENT)|$(CREATED_BY)|$(SITE)' 2> /dev/null |
    awk -F'|' -v want=$RELEASE '$3 != "main" || $4 != "Packages" {next} $1 == want {best = best ? best : $5} $2 == "Debian" {any = $5}
      END {print best ? best : any}')
  [ -n "$found" ] || die "apt here knows no mirror of Debian: set WEFT_KUBE_MIRROR to the URI of one that has $RELEASE"
  echo "$found"
}

# apt_setup: fills the array APT. Lists are fetched once for each run of setup.
apt_setup() {
  [ -z "${APT:-}" ] || return 0
  local uri keyring=${WEFT_KUBE_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg} a=$WORK/apt
  uri=$(mirror)
  [ -r "$keyring" ] || die "$keyring is not there: sudo apt-get install debian-archive-keyring, or set WEFT_KUBE_KEYRING"
  mkdir -p "$a"/{none,lists/partial,cache/archives/partial}
  : > "$a/status"
  printf '%s [signed-by=%s] %s %s main\n' deb "$keyring" "$uri" $RELEASE deb-src "$keyring" "$uri" $RELEASE > "$a/sources.list"
  APT=(apt-get -qq -o Dir::Etc::sourcelist="$a/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferences="$a/none" -o Dir::Etc::preferencesparts="$a/none"
    -o Dir::State::Lists="$a/lists" -o Dir::State::Status="$a/status" -o Dir::State::extended_states="$a/ext" -o Dir::Cache="$a/cache"
    -o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke-Success= -o Debug::NoLocking=1 -o Acquire::Languages=none
    -o Acquire::Retries=3 -o APT::Install-Recommends=0 -o APT::Keep-Downloaded-Packages=1)
  logged apt-update "${APT[@]}" update
  [ -n "$(ls "$a"/lists/*_Packages* 2> /dev/null)" ] ||
    die "no package list came from $uri: is it a mirror of Debian that can be reached? (WEFT_KUBE_MIRROR names another; $DIR/log/apt-update)"
}

# closure PACKAGE...: the file names of all that installing these would unpack
closure() { "${APT[@]}" -y --print-uris install "$@" | awk '{print $2}' | grep -vE "$UNUSED"; }

fetch_packages() {
  apt_setup
  local pkg=$DIR/pkg node
  rm -rf "$pkg"; mkdir -p "$pkg/lone"
  node=$(closure "${NODE_PACKAGES[@]}")
  closure "${TOOLS_PACKAGES[@]}" > "$pkg/tools.list"
  logged download-packages "${APT[@]}" -y --download-only install "${NODE_PACKAGES[@]}"
  ( cd "$WORK/apt/cache/archives"; mv -- $node "$pkg/" )
  ( cd "$pkg/lone"; logged download-lone "${APT[@]}" download "${LONE_PACKAGES[@]}" )
  say "packages: $(du -sh "$pkg" | cut -f1)"
}

# Compiler and sources, into $WORK/dl and $WORK/root.
fetch_sources() {
  [ ! -e "$WORK/dl/.done" ] || return 0
  apt_setup
  mkdir -p "$WORK"/{dl,root}
  (
    cd "$WORK/dl"
    logged download-go "${APT[@]}" download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
    logged download-sources "${APT[@]}" source --download-only kubernetes
    for deb in *.deb; do dpkg-deb -x "$deb" "$WORK/root"; done
    touch .done
  )
  say "sources and compiler: $(du -sh "$WORK/dl" | cut -f1)"
}
