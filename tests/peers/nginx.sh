#!/bin/sh
# Runs nginx with the files in ./files, each replica in a directory of its own.
set -eu
peers=$(dirname "$(readlink -f "$0")")
dir=$(mktemp -d "$PWD/nginx.XXXXXX")
ln -s "$PWD/files" "$dir/files"
exec nginx -e stderr -p "$dir/" -c "$peers/nginx.conf"
