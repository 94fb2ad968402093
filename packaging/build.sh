# shellcheck shell=bash
# Builds the artefacts of script/package, which sources this. A function an artefact.

dist=$PWD/target/dist
work=$PWD/target/package
skipped=()
version=$(cargo metadata --locked --no-deps --format-version 1 |
    jq -r '.packages[] | select(.name == "reflector") | .version')
revision=$(git rev-parse HEAD)
# The time of every file in an artefact: that of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
programs=(reflector packetparamedic)

skip() {
    echo "SKIPPED: $1" >&2
    skipped+=("$1")
}

triple_of() {
    case $1 in
        amd64) echo x86_64-unknown-linux-gnu ;;
        arm64) echo aarch64-unknown-linux-gnu ;;
    esac
}

# The folder of the built programs of an architecture, dynamic or static.
built() { echo "$work/programs/$1-$2"; }

# Compiles both programs for an architecture, dynamic and static, and for the architecture of this machine also the
# program that writes the man pages. Flags go to the target alone, so that build scripts are compiled once; paths of this
# machine do not get into the programs.
compile() {
    local arch=$1 triple variable flags also=()
    triple=$(triple_of "$arch")
    variable=${triple//-/_}
    flags="--remap-path-prefix=$PWD=/source --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    # glibc 2.36, which the packages need, reads packed relocations.
    flags+=" -C link-arg=-Wl,-z,pack-relative-relocs"
    local settings=("CARGO_TARGET_DIR=$work/cargo"
        # No exception passes through C, and no statement uses these parts of SQLite.
        "CFLAGS_$variable=-fno-asynchronous-unwind-tables"
        "LIBSQLITE3_FLAGS=-USQLITE_ENABLE_FTS3 -USQLITE_ENABLE_FTS3_PARENTHESIS -USQLITE_ENABLE_FTS5 -USQLITE_ENABLE_RTREE")
    if [ "$arch" = arm64 ]; then
        settings+=("CC_$variable=aarch64-linux-gnu-gcc" "AR_$variable=aarch64-linux-gnu-ar"
            "CARGO_TARGET_${variable^^}_LINKER=aarch64-linux-gnu-gcc")
        # The linker of binutils cannot pack relocations of arm64; the one that comes with Rust can.
        local lld
        lld=$(rustc --print sysroot)/lib/rustlib/$(triple_of amd64)/bin/gcc-ld
        [ ! -d "$lld" ] || flags+=" -C link-arg=-B$lld -C link-arg=-fuse-ld=lld"
    else
        also=(-p manuals)
    fi
    settings+=("CARGO_TARGET_${variable^^}_RUSTFLAGS=$flags")
    local build=(cargo build --quiet --locked --profile dist --target "$triple" -p reflector -p packetparamedic)
    # Each build for an architecture puts its programs in the same place.
    local results=$work/cargo/$triple/dist
    echo "compiling for $arch, dynamic"
    env "${settings[@]}" "${build[@]}" "${also[@]}"
    install -D -t "$(built "$arch" dynamic)" "$results/reflector" "$results/packetparamedic"
    [ "$arch" = arm64 ] || install -D -t "$work/programs" "$results/manuals"
    echo "compiling for $arch, static"
    # By its name alone: the hash of each crate has the path of the wrapper in it.
    env "${settings[@]}" PATH="$PWD/packaging:$PATH" RUSTC_WORKSPACE_WRAPPER=rustc-static "${build[@]}"
    install -D -t "$(built "$arch" static)" "$results/reflector" "$results/packetparamedic"
}

# Whether this machine can compile for arm64: needs the standard library of the target and a cross compiler.
can_build_arm64() {
    if ! need_packages aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu; then
        skip "arm64: there is no cross compiler (gcc-aarch64-linux-gnu)"
        return 1
    fi
    [ -e /usr/aarch64-linux-gnu/lib/libc.a ] || apt-get install -y -qq --no-install-recommends libc6-dev-arm64-cross >/dev/null
    if [ ! -d "$(rustc --print sysroot)/lib/rustlib/aarch64-unknown-linux-gnu" ] &&
        ! rustup target add aarch64-unknown-linux-gnu >&2; then
        skip "arm64: rustup can't add the target aarch64-unknown-linux-gnu"
        return 1
    fi
}

# Everything for one architecture.
package() {
    local arch=$1
    compile "$arch"
    describe
    for program in "${programs[@]}"; do
        deb "$program" "$arch" "$version" "$dist"
        bill_of_materials "$program" "$arch"
    done
    tarball "$arch"
}

# What the artefacts of all architectures share: man pages, completions, configuration, notices. The programs of this
# machine print them.
describe() {
    local shared=$work/shared bin
    bin=$(built amd64 dynamic)
    [ -x "$work/programs/manuals" ] || compile amd64
    rm -rf "$shared"
    mkdir -p "$shared/man" "$shared/completions"
    "$work/programs/manuals" "$shared/man"
    for program in "${programs[@]}"; do
        "$bin/$program" config template >"$shared/$program.toml"
        for shell in bash zsh fish; do
            "$bin/$program" completions $shell >"$shared/completions/$program.$shell"
        done
    done
    notices >"$shared/NOTICES"
    cp "$shared/NOTICES" "$dist/THIRD-PARTY-NOTICES.txt"
}

# Copies what a prefix holds for a program: the program, man pages, completions. $4 and $5: the folders of the completions
# of zsh and fish.
install_program() {
    local program=$1 bin=$2 prefix=$3 zsh=$4 fish=$5 shared=$work/shared
    install -D -m 0755 "$bin/$program" "$prefix/bin/$program"
    install -d "$prefix/share/man/man1"
    for page in "$shared/man/$program".1 "$shared/man/$program"-*.1; do
        gzip -9nc "$page" >"$prefix/share/man/man1/$(basename "$page").gz"
    done
    install -D -m 0644 "$shared/completions/$program.bash" "$prefix/share/bash-completion/completions/$program"
    install -D -m 0644 "$shared/completions/$program.zsh" "$prefix/share/zsh/$zsh/_$program"
    install -D -m 0644 "$shared/completions/$program.fish" "$prefix/share/fish/$fish/$program.fish"
}

# A Debian package. dpkg-deb builds it from a folder: there is no source package, and nothing to configure that a few
# lines of shell do not say more plainly than a packaging tool.
deb() {
    local program=$1 arch=$2 as_version=$3 into=$4 root=$work/deb from=packaging/debian/$1
    rm -rf "$root"
    install_program "$program" "$(built "$arch" dynamic)" "$root/usr" vendor-completions vendor_completions.d
    install -D -m 0644 "$work/shared/$program.toml" "$root/etc/packetparamedic/$program.toml"
    install -D -m 0644 "packaging/sysusers.d/$program.conf" "$root/usr/lib/sysusers.d/$program.conf"
    if [ -e "packaging/systemd/$program.service" ]; then
        install -D -m 0644 "packaging/systemd/$program.service" "$root/usr/lib/systemd/system/$program.service"
    fi
    if [ -e "packaging/tmpfiles.d/$program.conf" ]; then
        install -D -m 0644 "packaging/tmpfiles.d/$program.conf" "$root/usr/lib/tmpfiles.d/$program.conf"
    fi
    install -d "$root/usr/share/doc/$program" "$root/DEBIAN"
    gzip -9nc CHANGELOG.md >"$root/usr/share/doc/$program/changelog.gz"
    { cat LICENSE-MIT LICENSE-APACHE && cat "$work/shared/NOTICES"; } >"$root/usr/share/doc/$program/copyright"
    for name in postinst prerm postrm; do
        [ -e "$from/$name" ] || continue
        {
            printf '#!/bin/sh\nset -e\n'
            case $name in
                postinst) cat packaging/debian/add-user.sh ;;
            esac
            case $program-$name in
                reflector-postinst | reflector-prerm) cat packaging/debian/reflector/stop.sh ;;
            esac
            cat "$from/$name"
        } >"$root/DEBIAN/$name"
        chmod 0755 "$root/DEBIAN/$name"
    done
    echo "/etc/packetparamedic/$program.toml" >"$root/DEBIAN/conffiles"
    local size
    size=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)
    sed -e "s/@VERSION@/$as_version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" "$from/control" >"$root/DEBIAN/control"
    (cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$root" "$into/${program}_${as_version}_$arch.deb" >/dev/null
}

# The static programs with an installer that needs no root.
tarball() {
    local arch=$1 name folder
    name=packetparamedic-$version-$(triple_of "$arch" | cut -d- -f1)-linux
    folder=$work/tarball/$name
    rm -rf "$work/tarball"
    for program in "${programs[@]}"; do
        install_program "$program" "$(built "$arch" static)" "$folder" site-functions vendor_completions.d
        install -D -m 0644 "$work/shared/$program.toml" "$folder/$program.toml"
    done
    install -m 0755 packaging/tarball/install "$folder/install"
    install -m 0644 LICENSE-MIT LICENSE-APACHE CHANGELOG.md "$folder"
    install -m 0644 "$work/shared/NOTICES" "$folder/THIRD-PARTY-NOTICES.txt"
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$work/tarball" -c "$name" |
        gzip -9n >"$dist/$name.tar.gz"
}

# The crates in a program, one "name vVERSION" a line.
crates_of() {
    cargo tree --locked -p "$1" -e normal --target "$(triple_of "$2")" --prefix none --format '{p}' |
        cut -d' ' -f1,2 | LC_ALL=C sort -u
}

# What is in a program, as CycloneDX 1.5, from Cargo's own data.
bill_of_materials() {
    local program=$1 arch=$2
    local checksums
    checksums=$(awk -F'"' '/^name/ {n=$2} /^version/ {v=$2} /^checksum/ {print n " v" v " " $2}' Cargo.lock)
    cargo metadata --locked --format-version 1 --filter-platform "$(triple_of "$arch")" | jq --sort-keys \
        --arg program "$program" --arg version "$version" --arg checksums "$checksums" \
        --arg crates "$(crates_of "$program" "$arch")" --arg time "$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)" '
        ($crates | split("\n") | map(select(. != ""))) as $wanted
        | ($checksums | split("\n") | map(split(" ") | { key: "\(.[0]) \(.[1])", value: .[2] }) | from_entries) as $sums
        | def reference: "pkg:cargo/\(.name)@\(.version)";
        { bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
          metadata: { timestamp: $time, component: { type: "application", name: $program, version: $version,
                      "bom-ref": "pkg:cargo/\($program)@\($version)" } },
          components: [ .packages[] | "\(.name) v\(.version)" as $key
            | select(.name != $program and ($wanted | index($key)))
            | { type: "library", name, version, purl: reference, "bom-ref": reference,
                licenses: (if .license then [{ expression: (.license | gsub("/"; " OR ")) }] else [] end),
                hashes: (if $sums[$key] then [{ alg: "SHA-256", content: $sums[$key] }] else [] end),
                externalReferences: (if .repository then [{ type: "vcs", url: .repository }] else [] end) } ] }' \
        >"$dist/${program}_${version}_$arch.cdx.json"
}

# The licences of the crates in both programs, each text once, after the crates that it is for.
notices() {
    local folder=$work/notices
    rm -rf "$folder"
    mkdir -p "$folder"
    for program in "${programs[@]}"; do crates_of "$program" amd64; done | LC_ALL=C sort -u >"$folder/crates"
    cargo metadata --locked --format-version 1 | jq -r '.packages[] | select(.source)
        | "\(.name) v\(.version)\t\(.license // "see its files")\t\(.manifest_path)"' | LC_ALL=C sort >"$folder/packages"
    echo "The programs contain the following works of other authors. The static programs also contain the GNU C library"
    echo "(LGPL-2.1-or-later); their source and the commands that build them are public, so they can be linked anew."
    echo
    while IFS=$'\t' read -r crate license manifest; do
        grep -qxF "$crate" "$folder/crates" || continue
        echo "$crate: $license"
        find "$(dirname "$manifest")" -maxdepth 2 -type f \
            \( -iname 'license*' -o -iname 'licence*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'copyright*' \) \
            ! -name '*.rs' | LC_ALL=C sort | while read -r file; do
            sum=$(sha256sum "$file" | cut -d' ' -f1)
            [ -e "$folder/$sum.text" ] || cp "$file" "$folder/$sum.text"
            echo "$crate" >>"$folder/$sum.crates"
        done
    done <"$folder/packages"
    for text in "$folder"/*.text; do
        printf '\n%s\n' "----------------------------------------------------------------------"
        paste -sd, "${text%.text}.crates" | sed 's/,/, /g'
        echo
        cat "$text"
    done
}

# A minimal Debian as a tar file, made once.
debian_base() {
    local tar=$work/debian-bookworm.tar root mirror
    if [ ! -e "$tar" ]; then
        need_packages debootstrap=debootstrap >&2
        root=$(mktemp -d)
        chmod 0755 "$root"
        # shellcheck disable=SC2016 # for apt-get
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
        debootstrap --variant=minbase bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 ||
            { tail -n 5 "$work/debootstrap.log" >&2 && return 1; }
        rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb
        tar -C "$root" --numeric-owner -cf "$tar" .
        rm -rf "$root"
    fi
    echo "$tar"
}

# The same with further packages, under a name of its own.
debian_with() {
    local tar=$work/debian-$1.tar root
    if [ ! -e "$tar" ]; then
        root=$(mktemp -d)
        chmod 0755 "$root"
        tar -C "$root" -xf "$(debian_base)"
        cp /etc/resolv.conf "$root/etc/resolv.conf"
        # Services are started by the check, not by their installation.
        printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
        chmod 0755 "$root/usr/sbin/policy-rc.d"
        chroot "$root" sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends "$@" && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb' sh "${@:2}" \
            >"$work/debian-$1.log" 2>&1 || { tail -n 5 "$work/debian-$1.log" >&2 && return 1; }
        rm "$root/usr/sbin/policy-rc.d"
        tar -C "$root" --numeric-owner -cf "$tar" .
        rm -rf "$root"
    fi
    echo "$tar"
}

# buildah with its own storage, and without a kernel's overlay.
buildah_here() {
    buildah --root "$work/containers" --runroot "$work/containers-run" --storage-driver vfs "$@"
}

# The container images of both programs, as files for `podman load` or `docker load`. No registry is asked: the Debian
# images stand on a base that debootstrap makes.
images() {
    if [ "$(id -u)" -ne 0 ] || ! need_packages buildah=buildah; then
        skip "images: buildah needs root here"
        return
    fi
    local context=$work/context base=localhost/debian:bookworm-slim container
    rm -rf "$context"
    mkdir -p "$context"/reflector/rootfs/{usr/bin,var/lib/reflector} \
        "$context"/packetparamedic/rootfs/{usr/bin,var/lib/packetparamedic}
    install -m 0755 "$(built amd64 static)/reflector" "$context/reflector/rootfs/usr/bin/reflector"
    install -m 0755 "$(built amd64 dynamic)/packetparamedic" "$context/packetparamedic/rootfs/usr/bin/packetparamedic"
    if ! buildah_here inspect --type image "$base" >/dev/null 2>&1; then
        container=$(buildah_here from scratch)
        buildah_here add --quiet "$container" "$(debian_base)" / >/dev/null
        buildah_here commit --quiet --rm "$container" "$base" >/dev/null
    fi
    image reflector "$version" reflector "$context/reflector"
    image reflector "$version-iperf3" reflector-iperf3 "$context/reflector" --build-arg "BASE=$base"
    image packetparamedic "$version" packetparamedic "$context/packetparamedic" --build-arg "BASE=$base"
}

# image NAME TAG CONTAINERFILE CONTEXT [options of buildah build]
image() {
    local name=$1 tag=$2 file=$3 context=$4
    shift 4
    echo "image $name:$tag"
    # In the format of Docker: the other one has no place for the health check.
    buildah_here build --quiet --format docker --isolation chroot --network host --pull-never \
        --timestamp "$SOURCE_DATE_EPOCH" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" \
        --tag "localhost/$name:$tag" --file "packaging/container/$file.Containerfile" "$context" >/dev/null
    buildah_here push --quiet "localhost/$name:$tag" "docker-archive:$work/image.tar:localhost/$name:$tag"
    gzip -9nc "$work/image.tar" >"$dist/$name-$tag-amd64.image.tar.gz"
    rm "$work/image.tar"
}
