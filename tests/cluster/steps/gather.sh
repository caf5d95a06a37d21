# Programs of this machine and what they need to run, gathered for an image that lies over weft.local/tools:1.
LIBRARIES=usr/lib/$(uname -m)-linux-gnu
GLIBC='^(ld-linux.*|lib(c|m|mvec|resolv|pthread|dl|rt|util|anl|nss_[a-z]+)\.so\.[0-9]+)$'

# libraries ROOT FILE...: copies the shared libraries of programs and modules below ROOT. The C library is the image's own,
# unless this machine's is newer: then the whole of it goes over the image's, since its parts fit no others.
libraries() {
  local root=$1 said name path; shift
  mkdir -p "$root/$LIBRARIES"
  said=$(ldd "$@" 2> /dev/null) || true                     # it also fails where a file is linked statically
  ! grep 'not found' <<< "$said" >&2 || die "this machine lacks a library (above) of: $*"
  awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' <<< "$said" | sort -u | while read -r name path; do
    [[ $name =~ $GLIBC ]] || install -m755 "$path" "$root/$LIBRARIES/$name"
  done
  path=$(awk '$1 == "libc.so.6" {print $3; exit}' <<< "$said")
  [ -n "$path" ] && newer_glibc || return 0
  find "${path%/*}/" -maxdepth 1 -printf '%f\n' | grep -E "$GLIBC" | while read -r name; do
    install -m755 "${path%/*}/$name" "$root/$LIBRARIES/$name"
  done
  # the loader, where programs name it
  path=$(awk 'NF == 2 && $1 ~ /^\/.*\/ld-linux/ {print $1; exit}' <<< "$said")
  install -D -m755 "$path" "$root/usr/${path#/usr/}"
}

newer_glibc() {
  local here node
  here=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
  node=$("$NODE/$LIBRARIES"/ld-linux*.so.? --version | sed -n '1s/.*version \([0-9.]*[0-9]\).*/\1/p')
  [ "$here" != "$node" ] && [ "$(printf '%s\n' "$here" "$node" | sort -V | tail -n 1)" = "$here" ]
}

# a directory for the image's files, gone when the script ends
scratch() { ROOT=$(mktemp -d "$DIR/scratch.XXXXXX"); chmod 755 "$ROOT"; trap 'rm -rf "$ROOT"' EXIT; }
built() { [ -e "$DIR/.stamp.images" ] || die "nothing is built in $DIR yet: run $HERE/setup first"; }
