#!/usr/bin/env bash
# Builds the image and runs the main job in it, without a container engine and without a registry of images.
#
#     sudo docker/image-check.sh          (or: make image-check)
#
# debootstrap makes the base image, buildah builds docker/Dockerfile on it, and the service runs with the image's own
# entry point, command, environment and user, as restricted as in docker/compose.yml: a read-only root, 256 MiB of
# /tmp, 64 MiB of shared memory, no capability. Then the main job is run against it over HTTP, the health check is
# asked, and the service is told to stop.
#
# What differs from `docker run`: the network is a loopback device and nothing else (so the service cannot fetch its
# data, and nobody else can reach it), no seccomp filter and no control group are set, and the host's kernel limits hold.
#
#   PYTHON           the Python that runs the main job and reads pip's settings (.venv/bin/python)
#   TORCH_INDEX_URL  as in the Dockerfile
#   TMPDIR           where 30 GB are free for as long as it runs
#   KEEP=1           keeps the folder with the image, the data and the logs, and says where it is
set -euo pipefail

readonly SUITE=bookworm IMAGE=localhost/epochd BASE=localhost/base READY_SECONDS=120 STOP_SECONDS=30 NEEDED_GB=30
repository=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
cd "$repository"
python=${PYTHON:-.venv/bin/python}
PATH=$PATH:/usr/sbin:/sbin # a plain `su` leaves them out

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'image-check: %s\n' "$*" >&2; exit 1; }

# ---------------------------------------------------------------- what it takes

missing=()
for tool in buildah:buildah debootstrap:debootstrap ip:iproute2 pgrep:procps; do
    command -v "${tool%:*}" > /dev/null || missing+=("${tool#*:}")
done
if ((${#missing[@]})); then
    if ((EUID != 0)) || ! command -v apt-get > /dev/null; then
        fail "this needs ${missing[*]}; install them (on Debian: apt-get install ${missing[*]})"
    fi
    say "Installing with apt-get what this needs: ${missing[*]}"
    apt-get -q update
    apt-get -q install -y --no-install-recommends "${missing[@]}"
fi
((EUID == 0)) || fail "only root may make a base system and mount things: run it with sudo"
"$python" -c 'import pip, httpx2' 2> /dev/null || fail "PYTHON ($python) cannot run the main job: run make, or name another one"

work=$(mktemp -d "${TMPDIR:-/tmp}/epochd-image-XXXXXX")
sandbox=
cleanup() {
    # With its first process, everything in the sandbox ends.
    [[ -z $sandbox ]] || pkill -KILL --parent "$sandbox" || true
    wait
    if [[ ${KEEP:-} == 1 ]]; then
        say "Kept: $work"
    else
        rm -rf --one-file-system "$work"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

free=$(df --output=avail --block-size=1G "$work" | tail -n 1)
((free >= NEEDED_GB)) || fail "$NEEDED_GB GB are needed and ${free// } are free in $(dirname "$work"): set TMPDIR"

mkdir "$work/tmp"
export TMPDIR=$work/tmp
# vfs needs nothing of the kernel and leaves no mount behind; STORAGE_DRIVER is not heard beside --root.
buildah() { command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

# ---------------------------------------------------------------- the base image

# The host's own mirror; without one debootstrap knows where Debian is.
mirror=$(apt-get --print-uris update 2> /dev/null | sed -nE "s|^'(.*)/dists/$SUITE/InRelease'.*|\1|p" | head -n 1) || true

say "Base image: Debian $SUITE, variant minbase"
SECONDS=0
base=$(buildah from scratch)
root=$(buildah mount "$base")
debootstrap --variant=minbase "$SUITE" "$root" ${mirror:+"$mirror"} > "$work/debootstrap.log" 2>&1 \
    || { tail -n 5 "$work/debootstrap.log"; fail "debootstrap did not work"; }
# What it leaves of the host and of the installation.
rm -rf "$root"/etc/{hostname,resolv.conf} "$root"/var/cache/apt/{archives/*.deb,*.bin} "$root"/var/lib/apt/lists/*
buildah commit --quiet --rm "$base" "$BASE" > /dev/null
echo "$SECONDS s"

# ---------------------------------------------------------------- the image

# The build reaches packages as the host does: by the host's pip settings, from files and from the environment, with
# its certificates and with the local folders that they name. Proxies in the environment are passed on by buildah.
mkdir "$work/host"
"$python" -m pip config list | "$python" -c '
import ast, configparser, os, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

folder = Path(sys.argv[1])
config = configparser.RawConfigParser()
config.add_section("global")
for line in sys.stdin:  # those of the environment come first, and win
    key, _, value = line.strip().partition("=")
    section, _, name = key.replace(":env:", "global").rpartition(".")
    if not config.has_section(section):
        config.add_section(section)
    if not config.has_option(section, name):
        config.set(section, name, ast.literal_eval(value))

bundles = [config.get("global", "cert", fallback=""), os.environ.get("SSL_CERT_FILE", ""),
           "/etc/ssl/certs/ca-certificates.crt"]
for bundle in filter(os.path.isfile, bundles):
    # Under a name of its own: a package that is being installed may want to write the usual one.
    config.set("global", "cert", "/etc/pip-certificates.crt")
    print(f"{os.path.realpath(bundle)}:/etc/pip-certificates.crt:ro")
    break

folders = set()
for option in ("find-links", "index-url", "extra-index-url"):
    places = [config.get(section, option, fallback="") for section in config.sections()]
    if option == "index-url":
        places.append(os.environ.get("TORCH_INDEX_URL", ""))
    for place in " ".join(places).split():
        path = Path(unquote(urlsplit(place).path)) if place.startswith("file:") else Path(place)
        if path.is_absolute() and path.is_dir():
            # The pages of an index name files beside it.
            folders.add(path if option == "find-links" or path.parent == Path("/") else path.parent)
print(*(f"{path}:{path}:ro" for path in sorted(folders)), sep="\n")

with (folder / "pip.conf").open("w") as file:
    config.write(file)
print(f"{folder}/pip.conf:/etc/pip.conf:ro")
' "$work/host" > "$work/host/volumes"
options=()
while read -r volume; do
    [[ -z $volume ]] || options+=(--volume "$volume")
done < "$work/host/volumes"

say "Image: docker/Dockerfile"
SECONDS=0
# vfs copies every layer whole, so there is one.
buildah build --isolation chroot --layers=false --pull-never --format docker --file docker/Dockerfile --tag "$IMAGE" \
    --build-arg BASE_IMAGE="$BASE" --build-arg TORCH_INDEX_URL="${TORCH_INDEX_URL:-}" "${options[@]}" .
echo "$SECONDS s"
buildah images --format '{{.Name}}: {{.Size}}' | grep -E "^($IMAGE|$BASE):"

# ---------------------------------------------------------------- the service in it

# What `docker run` would read from the image.
uid='' gid='' port='' volume='' environment=() command=() check=()
settings=$(buildah inspect --type image "$IMAGE" | "$python" -c '
import json, shlex, sys

config = json.load(sys.stdin)["Docker"]["config"]
uid, _, gid = config.get("User", "").partition(":")
kind, *check = config["Healthcheck"]["Test"]
(port,) = config["ExposedPorts"]
(volume,) = config["Volumes"]
assert uid.isdecimal() and gid.isdecimal() and "0" not in (uid, gid), "the image is to name a user, by number, not root"
assert kind == "CMD", "the health check is to be in exec form"
words = {"environment": config["Env"], "command": [*config["Entrypoint"], *config["Cmd"]], "check": check}
for name, values in words.items():
    print(f"{name}=({shlex.join(values)})")
print("uid=%s gid=%s port=%d volume=%s" % (uid, gid, int(port.removesuffix("/tcp")), shlex.quote(volume)))
')
eval "$settings"

container=$(buildah from --pull-never "$IMAGE")
root=$(buildah mount "$container")
data=$work/data
cp -a "$root$volume" "$data" # a new volume begins as what the image has there, owner and mode included
key=$("$python" -c 'import secrets; print(secrets.token_urlsafe(32))')
environment+=("EPOCHD_API_KEY=$key")
without_rights=(setpriv --reuid "$uid" --regid "$gid" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs)

# shellcheck disable=SC2016  # expanded inside
make_sandbox='
    root=$1 data=$2 volume=$3
    shift 3
    ip link set lo up
    mount --bind "$root" "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o nosuid,mode=755 dev "$root/dev"
    for device in null zero full random urandom; do
        : > "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm"
    mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m shm "$root/dev/shm"
    mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=256m tmp "$root/tmp"
    mount --bind "$data" "$root$volume"
    mount -o remount,bind,ro "$root"
    exec chroot "$root" /usr/bin/env -i "$@"
'

say "Service: ${command[*]} as $uid:$gid"
log=$work/service.log
unshare --fork --pid --mount --net --uts --ipc -- bash -euc "$make_sandbox" sandbox \
    "$root" "$data" "$volume" "${environment[@]}" "${without_rights[@]}" "${command[@]}" > "$log" 2>&1 &
sandbox=$!

alive() { kill -0 "$sandbox" 2> /dev/null; }
give_up() { tail -n 20 "$log"; fail "$*"; }
on_its_network() { nsenter --target "$first" --net -- "$@"; }
inside() { # as `docker exec` does
    nsenter --target "$first" --mount --pid --net --uts --ipc --root --wd=/ -- \
        /usr/bin/env -i "${environment[@]}" "${without_rights[@]}" "$@"
}
answers() { # PATH
    on_its_network "$python" -c 'import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1])' \
        "http://127.0.0.1:$port$1" 2> /dev/null
}

until first=$(pgrep --parent "$sandbox"); do
    alive || give_up "the sandbox did not start"
    sleep 0.1
done
SECONDS=0
until answers /readyz; do
    alive || give_up "the service has ended"
    ((SECONDS < READY_SECONDS)) || give_up "the service was not ready after $READY_SECONDS s"
    sleep 0.5
done
echo "ready after $SECONDS s"

say "Its processes"
mapfile -t processes < <(pgrep --ns "$first" --nslist pid)
ps -o user:8,pid,ppid,nlwp,rss,args -p "$(IFS=,; echo "${processes[*]}")" | cut -c -150
for process in "${processes[@]}"; do
    uids=$(awk '/^(Uid|CapEff|CapBnd|NoNewPrivs):/ { $1 = ""; print }' "/proc/$process/status" | xargs)
    [[ $uids == "$uid $uid $uid $uid 0000000000000000 0000000000000000 1" ]] \
        || fail "process $process has rights that it should not have: $uids"
done
echo "all ${#processes[@]} are user $uid, without a capability"

say "Main job"
# The data folder is named so that the ten pictures come from there.
EPOCHD_DATA_DIR=$data on_its_network "$python" -m tests.end_to_end.demo --url "http://127.0.0.1:$port" --key "$key" \
    || give_up "the main job did not work"

say "Health check: ${check[0]} ${check[1]} ..."
inside "${check[@]}" || give_up "the health check says that a healthy service is ill"
! inside env EPOCHD_PORT=9 "${check[@]}" 2> /dev/null || fail "the health check finds a service where there is none"
echo "0 where the service is, not 0 where it is not"

say "SIGTERM"
SECONDS=0
kill -TERM "$first"
while alive; do
    ((SECONDS < STOP_SECONDS)) || give_up "the service was still there $STOP_SECONDS s after SIGTERM"
    sleep 0.1
done
code=0
wait "$sandbox" || code=$?
sandbox=
((code == 0)) || give_up "the service left with exit code $code"
for process in "${processes[@]}"; do
    ! kill -0 "$process" 2> /dev/null || fail "process $process is still there"
done
# The end of the first process ends the others by force; that the worker had left by itself before is in the log.
grep -q '"event": "worker_stopped"' "$log" || give_up "the worker did not stop by itself"
echo "exit code 0 after $SECONDS s; nothing is left running"

say "It works: $(buildah images --format '{{.Size}}' "$IMAGE")"
