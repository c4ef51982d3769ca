#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A job over two hosts, which are network namespaces with addresses of their own
# that mpirun reaches by an agent in the place of ssh. Needs root. Argument: the
# launching program (launch_rank_program.cc is its worker).
set -euo pipefail
source tests/testing/skip.sh

program=$PWD/$1
cd "$TEST_TMPDIR"
near=cubit-near-$$
far=cubit-far-$$

if ((EUID != 0)) || ! ip netns add "$near" 2>/dev/null; then
  skip "network namespaces need root"
fi
job=
clean_up() {
  [[ -z $job ]] || kill -KILL "$job" 2>/dev/null || true
  ip netns del "$near"
  ip netns del "$far"
}
trap clean_up EXIT
ip netns add "$far"
ip link add near netns "$near" type veth peer name far netns "$far"
ip -n "$near" address add 10.77.0.1/24 dev near
ip -n "$far" address add 10.77.0.2/24 dev far
for side in "$near lo" "$near near" "$far lo" "$far far"; do
  read -r namespace device <<<"$side"
  ip -n "$namespace" link set "$device" up
done

cat >agent <<END
#!/bin/bash
while [[ \$1 == -* ]]; do shift; done
host=\$1
shift
namespace=$near
[[ \$host == 10.77.0.1 ]] || namespace=$far
exec ip netns exec \$namespace /bin/bash -c "\$*"
END
chmod +x agent
printf '10.77.0.1 slots=2 # near\n10.77.0.2 slots=2\n' >hosts
export OMPI_MCA_plm_rsh_agent=$PWD/agent OMPI_MCA_plm_rsh_no_tree_spawn=1
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=10.77.0.0/24
export OMPI_MCA_oob_tcp_if_include=10.77.0.0/24

fail() {
  echo "FAIL: $*"
  cat said
  exit 1
}

start() {
  : >said # before wait_for reads what the last job said
  ip netns exec "$near" "$program" --device=cpu --hostfile=hosts "$@" \
    >said 2>&1 &
  job=$!
}

# The status of the job into `status`, its duration into SECONDS.
finish() {
  status=0
  SECONDS=0
  wait "$job" || status=$?
  job=
}

wait_for() {
  local tries
  for ((tries = 0; tries < 300; ++tries)); do
    ! grep --quiet "$1" said || return 0
    sleep 0.1
  done
  fail "\"$1\" was not said"
}

echo "A rank on each host, and all of them end well"
start --all=done
finish
((status == 0)) || fail "status $status"
grep --quiet "^2 ranks: 2 nodes x 1 CPU rank, by mpirun over the hosts" said ||
  fail "what is started is not said"
grep --quiet "rank 1 of 2: pid [0-9]*, local 0 of 1" said || fail "no rank 1"

echo "A rank of the other host dies"
start --rank_1=kill:9
finish
((status == 2 && SECONDS < 10)) || fail "status $status after $SECONDS s"
grep --quiet "^error: rank 1 .* killed by signal 9 (SIGKILL)" said ||
  fail "no reason"

echo "SIGTERM reaches the other host"
start
wait_for "rank 0 of 2"
wait_for "rank 1 of 2"
kill -TERM "$job"
finish
((status == 143)) || fail "status $status"
grep --quiet "^\[rank 1\] warning: saved" said || fail "rank 1 has not saved"

echo "The link is cut, and mpirun cannot end the other host's ranks"
start
wait_for "rank 0 of 2"
wait_for "rank 1 of 2"
ip -n "$near" link set near down
kill -KILL "$(sed --quiet 's/^rank 0 of 2: pid \([0-9]*\),.*/\1/p' said)"
finish
((status == 2 && SECONDS < 10)) || fail "status $status after $SECONDS s"
grep --quiet "^error: rank 0 .* killed by signal 9 (SIGKILL)" said ||
  fail "no reason"
