# Settings and functions that the scripts here share; sourced, never run. What a caller may set:
#   WEFT_KUBE_DIR       where everything is built and run (default: ${XDG_CACHE_HOME:-~/.cache}/weft/kube)
#   WEFT_KUBE_MIRROR    URI of a Debian mirror, where apt here knows none (WEFT_KUBE_KEYRING: what signs it)
#   WEFT_KUBE_JOBS      processors that the build may use (default: all)
#   WEFT_KUBE_KEEP=1    setup keeps sources and the Go cache, down keeps the logs in run.last
#   WEFT_KUBE_LINK      first three octets of the link between host and node (default: 172.31.254)
#   WEFT_KUBELET_V      verbosity of the kubelet (default: 0)
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ME=${0##*/}
PATH=$PATH:/usr/sbin:/sbin

die() { echo "$ME: $*" >&2; exit 1; }
say() { printf '%s: %4d s  %s\n' "$ME" "$SECONDS" "$*" >&2; }

# Under sudo the cache is still that of the person who called: setup needs no root, the others do.
home=$HOME
[ -z "${SUDO_USER:-}" ] || [ "$(id -u)" != 0 ] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
DIR=${WEFT_KUBE_DIR:-${XDG_CACHE_HOME:-${home:-$HOME}/.cache}/weft/kube}
mkdir -p "$DIR" || die "cannot make $DIR: set WEFT_KUBE_DIR to a directory that you may write"
DIR=$(cd "$DIR" && pwd -P)
BIN=$DIR/bin NODE=$DIR/node RUN=$DIR/run WORK=$DIR/work

LINK=${WEFT_KUBE_LINK:-172.31.254}
VETH=wkube${LINK##*.} HOST_IP=$LINK.1 NODE_IP=$LINK.2
POD_CIDR=10.244.0.0/24 SVC_CIDR=10.96.0.0/16 SVC_IP=10.96.0.1 DNS_IP=10.96.0.10
NODE_NAME=node1 REGISTRY=weft.local
CONFIG=$RUN/admin.kubeconfig
kubectl() { "$BIN/kubectl" --kubeconfig="$CONFIG" "$@"; }

root() { [ "$(id -u)" = 0 ] || die "needs root, for namespaces and cgroups: sudo $HERE/$ME"; }

# need PROGRAM:PACKAGE...: stops where a program is not there, and says what to install
need() {
  local pair missing=
  for pair; do command -v "${pair%:*}" > /dev/null || missing="$missing ${pair#*:}"; done
  [ -z "$missing" ] || die "programs are missing; install them, on Debian with: sudo apt-get install$missing"
}

# One at a time. Close fd 9 in what outlives the caller: `9>&-`.
lock() {
  exec 9> "$DIR/.lock"
  flock -n 9 && return
  say "waits for another setup, up or down to end"
  flock -w 1200 9 || die "$DIR/.lock is still held after 20 minutes: see what runs with: fuser $DIR/.lock"
}

# logged NAME COMMAND...: its output goes to log/NAME, and is shown when it fails
logged() {
  local log=$DIR/log/$1 rc=0; shift; mkdir -p "$DIR/log"
  "$@" > "$log" 2>&1 || rc=$?
  [ $rc = 0 ] || { tail -n 20 "$log" >&2; die "failed (status $rc): $*; all it said is in $log"; }
}

# start_of PID: when it started, so that a number that was given away again is not taken for it
start_of() { local s; s=$(cat "/proc/$1/stat" 2> /dev/null) && set -- ${s##*) } && echo "${20}"; }
node_pid() { local p t; read -r p t 2> /dev/null < "$RUN/node.pid" && [ "$(start_of "$p")" = "$t" ] && echo "$p"; }
alive() { node_pid > /dev/null; }
# node COMMAND...: runs it on the node, in all of its namespaces and on its root file system
node() {
  local p; p=$(node_pid) || die "the cluster is not up: run $HERE/up"
  nsenter -t "$p" -m -u -i -n -p -C -r -w env -i PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root TERM="${TERM:-dumb}" "$@"
}
