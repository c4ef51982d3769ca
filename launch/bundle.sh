#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Packs programs and the shared libraries that they need into one archive, which
# runs from any folder without Bazel and without installing packages:
#
#   ./bazelw run //launch:bundle -- --out=cubit.tar.gz
#
# Left out: glibc, the CUDA driver and MPI, which are the machine's own. All
# other arguments are paths of programs (launch/BUILD.bazel names them).
# Programs look for libraries in ../lib (runtime/bazel/cubit.bzl).
#
# Status 1: a wrong request, or a program whose libraries are not all here.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 1
}

# Whether a library belongs to the machine.
is_the_machines() {
  case $1 in
    ld-linux* | libc.so.* | libm.so.* | libdl.so.* | librt.so.* | \
      libpthread.so.* | libresolv.so.* | libutil.so.* | libanl.so.*) return 0 ;;
    libcuda.so.* | libnvidia-*) return 0 ;;
    libmpi.so.* | libmpi_*) return 0 ;;
  esac
  return 1
}

needed_by() {
  readelf --dynamic --wide "$1" |
    sed --quiet 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

# Adds what a file needs to `libraries` (name -> path). The libraries of MPI are
# not looked into: what they need is the machine's as well.
declare -A libraries=()
collect() {
  local file=$1 where=$2 name path
  for name in $(needed_by "$file"); do
    is_the_machines "$name" && continue
    [[ -z ${libraries[$name]:-} ]] || continue
    path=$(awk -v name="$name" '$1 == name && $2 == "=>" { print $3 }' "$where")
    [[ -f $path ]] || die "$file needs $name, which is not on this machine"
    libraries[$name]=$path
    collect "$path" "$where"
    # cuDNN opens its parts when it first needs them.
    if [[ $name == libcudnn.so.* ]]; then
      for path in "${path%/*}"/libcudnn_*."${name##*.so.}"; do
        libraries[${path##*/}]=$path
      done
    fi
  done
}

out=
programs=()
for word in "$@"; do
  case $word in
    --out=*) out=${word#--out=} ;;
    --help)
      sed --quiet '4,/^#$/ s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    -*) die "unknown flag $word; --out=FILE.tar.gz is the only one" ;;
    *) programs+=("$word") ;;
  esac
done
[[ -n $out ]] || die "--out is missing: the archive to write, cubit.tar.gz"
((${#programs[@]} > 0)) || die "no program is given"
[[ $out == /* ]] || out=${BUILD_WORKING_DIRECTORY:-$PWD}/$out
[[ -d $(dirname "$out") ]] || die "$(dirname "$out") is no folder"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/cubit/bin" "$scratch/cubit/lib"
for program in "${programs[@]}"; do
  [[ -f $program ]] || die "$program is not there"
  ldd "$program" >"$scratch/ldd" || die "$program is no program of this machine"
  collect "$program" "$scratch/ldd"
  # Stack traces need names of functions, not of lines.
  strip --strip-debug -o "$scratch/cubit/bin/${program##*/}" "$program"
done
for name in "${!libraries[@]}"; do
  install --mode=644 "${libraries[$name]}" "$scratch/cubit/lib/$name"
done
cat >"$scratch/cubit/README.txt" <<'END'
Cubit, without Bazel. Start bin/train --help from anywhere; the folder may be
moved. Needed of the machine: x86-64 with AVX2, glibc as new as that of the
machine that built this; for bin/train also Open MPI's libmpi.so.40 (Debian:
libopenmpi3 and, for several ranks, openmpi-bin); for GPUs the NVIDIA driver.
END
# Fast: most of the bytes are machine code, which higher levels hardly shrink.
tar --create --use-compress-program="gzip -1" --file "$out.tmp" \
  --owner=0 --group=0 --sort=name --directory "$scratch" cubit
mv "$out.tmp" "$out"
echo "$out: ${#programs[@]} programs, ${#libraries[@]} libraries," \
  "$(stat --format=%s "$out") bytes"
