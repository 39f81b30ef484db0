#!/usr/bin/env bash
# Installs the Debian packages that tests use: PostgreSQL, pgbouncer and nginx, of which they start private servers,
# Chromium, SQLite's command line, PrusaSlicer, and a C compiler, for a system clock that can be set. Names what is missing and cannot be
# installed; the tests that need it then skip with the same reason.
set -euo pipefail

has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null 2>&1; }
has_pgbouncer() { compgen -G '/usr/sbin/pgbouncer' >/dev/null || command -v pgbouncer >/dev/null 2>&1; }
has_nginx-light() { compgen -G '/usr/sbin/nginx' >/dev/null || command -v nginx >/dev/null 2>&1; }
has_sqlite3() { command -v sqlite3 >/dev/null 2>&1; }
has_chromium() { command -v chromium >/dev/null 2>&1; }
has_prusa-slicer() { command -v prusa-slicer >/dev/null 2>&1; }
has_build-essential() { command -v cc >/dev/null 2>&1; }

missing=()
for package in postgresql pgbouncer nginx-light chromium sqlite3 prusa-slicer build-essential; do
    "has_$package" || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing and not installable from here; their tests will be skipped: ${missing[*]}" >&2
    exit 0
fi
apt-get update -qq || true
for package in "${missing[@]}"; do
    echo "installing $package for the tests"
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" >/dev/null; then
        echo "$package could not be installed: its tests will be skipped" >&2
    fi
done
