# Kubernetes 1.20 from Debian's source package, with backport/ on top, and the programs of go/.
# GOPATH mode, offline, without cgo: static binaries and no C compiler.
ORIG=kubernetes_1.20.5+really1.20.2.orig.tar.gz
COMMANDS=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet)
JOBS=${WEFT_KUBE_JOBS:-$(nproc)}

# PWD, so that Go sees the tree where GOPATH has it and not behind the link.
go_env() {
  env -i PWD="$PWD" PATH="$WORK/root/usr/lib/go-1.19/bin:$PATH" HOME="$WORK/home" GOROOT="$WORK/root/usr/lib/go-1.19" GOPATH="$WORK/gopath" \
    GOCACHE="$WORK/gocache" CGO_ENABLED=0 GOPROXY=off GO111MODULE=off GOFLAGS= GOMAXPROCS="$JOBS" nice -n 10 "$@"
}

prepare_sources() { # stamp
  [ "$(cat "$WORK/src/.done" 2> /dev/null)" != "$1" ] || return 0
  local src=$WORK/src vendored=vendor/github.com/modern-go/reflect2 file name
  [ -f "$WORK/dl/$ORIG" ] || die "Debian's source is no longer $ORIG: backport/ must be looked at (found: $(cd "$WORK/dl" && ls))"
  rm -rf "$src"; mkdir -p "$src" "$WORK/home" "$WORK/gopath/src/k8s.io"
  tar xzf "$WORK/dl/$ORIG" -C "$src" --strip-components=1
  # The vendored version relies on the layout of a map iterator that Go 1.18 changed.
  rm -rf "${src:?}/$vendored"
  cp -a "$WORK/root/usr/share/gocode/src/github.com/modern-go/reflect2" "$src/$vendored"
  logged backport python3 -B "$HERE/backport/apply.py" "$src"
  for file in "$HERE"/go/*.go; do
    name=$(basename "$file" .go); mkdir -p "$src/cmd/$name"; cp "$file" "$src/cmd/$name/"
  done
  ln -sfn "$src" "$WORK/gopath/src/k8s.io/kubernetes"
  echo "$1" > "$src/.done"
  say "sources: unpacked, backport applied"
}

# The API server serves its schema from generated code, which the source package leaves to the build.
generate_openapi() {
  local packages
  cd "$WORK/gopath/src/k8s.io/kubernetes"
  logged build-openapi-gen go_env go build -p "$JOBS" -o "$WORK/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages=$(grep -rl --include='*.go' '^// *+k8s:openapi-gen=' pkg cmd plugin $(ls -d vendor/k8s.io/*/ | grep -vE 'code-generator|sample-apiserver') |
    grep -v '/_' | xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
  logged openapi-gen go_env "$WORK/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$WORK/violations"
  say "OpenAPI schema: generated"
}

compile() {
  local flags="-s -w" package program
  for package in component-base/version client-go/pkg/version; do
    package=k8s.io/kubernetes/vendor/k8s.io/$package
    flags="$flags -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20"
    flags="$flags -X $package.gitTreeState=archive -X $package.buildDate=2021-01-13T00:00:00Z"
  done
  cd "$WORK/gopath/src/k8s.io/kubernetes"
  mkdir -p "$BIN"
  for program in "${COMMANDS[@]}" kdns pause; do
    logged "build-$program" go_env go build -p "$JOBS" -ldflags "$flags" -o "$BIN/$program" "k8s.io/kubernetes/cmd/$program"
    say "compiled: $program"
  done
}
