#!/bin/sh
# Makes an archive of this checkout for machines without a compiler: dist/orgstream-VERSION-TARGET.tar.gz, with its SHA-256
# beside it. In it: the program and the verifier, stripped; man pages; completions; README, CHANGELOG, LICENSE.
#
#   tools/release.sh
#
# The same commit gives the same names, times and owners in the archive.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
. tools/install.sh
install_compiler
cargo build --release --locked --package orgstream --package orgstream-verifier
built=${CARGO_TARGET_DIR:-$root/target}/release
name=orgstream-$("$built/orgstream" --version | cut -d ' ' -f 2)-$(rustc -vV | sed -n 's/^host: //p')
rm -rf "dist/$name"
mkdir -p "dist/$name/bin" "dist/$name/man" "dist/$name/completions"
for program in orgstream orgstream-verify; do
    strip -o "dist/$name/bin/$program" "$built/$program"
done
"dist/$name/bin/orgstream" man --dir "dist/$name/man"
for shell in bash fish zsh; do
    "dist/$name/bin/orgstream" completions "$shell" > "dist/$name/completions/orgstream.$shell"
done
cp README.md CHANGELOG.md LICENSE "dist/$name"
time=$(git log -1 --format=%ct 2>/dev/null || date +%s)
tar --create --gzip --file "dist/$name.tar.gz" --directory dist --sort=name --mtime="@$time" --owner=0 --group=0 \
    --numeric-owner "$name"
(cd dist && sha256sum "$name.tar.gz" > "$name.tar.gz.sha256")
ls -l "dist/$name/bin" "dist/$name.tar.gz"
cat "dist/$name.tar.gz.sha256"
