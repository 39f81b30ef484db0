#!/usr/bin/env bash
# Sees to it that Debian's PostgreSQL is there for the tests, which start a private server of their own. Where it is
# absent and may not be installed, says so and succeeds: the tests then skip, with the same reason.
set -euo pipefail

if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "PostgreSQL is not installed and cannot be from here: its tests will be skipped" >&2
    exit 0
fi
echo "installing postgresql for the tests"
if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql >/dev/null; }; then
    echo "PostgreSQL could not be installed: its tests will be skipped" >&2
fi
