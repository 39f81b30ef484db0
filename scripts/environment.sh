# Sourced by the scripts in this folder: creates .venv if it is missing, installs into it, and puts it on PATH.
# shellcheck shell=bash

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3.13 python3.11 python3 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "image-to-3d needs Python 3.11, 3.12 or 3.13 with the venv module; none was found on PATH (set PYTHON=/path/to/python)" >&2
    return 1
}

# install_into_venv REQUIREMENT [pip options…]: skipped if the same request was installed from the same pyproject.toml.
install_into_venv() {
    local stamp_file=.venv/.installed python stamp
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
        python=$(find_python)
        echo "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
    stamp="$* $(cksum <pyproject.toml)"
    if ! grep -qxF -- "$stamp" "$stamp_file" 2>/dev/null; then
        echo "installing $* (the first time takes a few minutes, most of them downloads)"
        python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
        python -m pip install --quiet --disable-pip-version-check --editable "$@"
        echo "$stamp" >>"$stamp_file"
    fi
}

# install_triton: the dependency group `kernels` into a folder that only the tests of the kernels put on their path. There
# are no wheels for some systems: the tests are skipped there.
install_triton() {
    local folder=.venv/triton-for-tests
    if [ ! -d "$folder/triton" ]; then
        echo "installing Triton for the tests of the GPU kernels"
        python -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" --group kernels ||
            echo "no Triton for this system: the tests of the GPU kernels are skipped"
    fi
}

step() {
    echo "== $*"
    "$@"
}
