#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Training over four hosts, which are network namespaces on a switch, each with
# an address and a name of its own, reached by an agent in the place of ssh. One
# is cut off; the run goes on with two. Needs root. Argument: //launch:train.
set -euo pipefail
source tests/testing/skip.sh

program=$PWD/$1
cd "$TEST_TMPDIR"
export HOME=$PWD
tag=cubit$$
hosts=(1 2 3 4)

if ((EUID != 0)) || ! ip netns add "$tag-switch" 2>/dev/null; then
  skip "network namespaces need root"
fi
job=
clean_up() {
  [[ -z $job ]] || kill -KILL "$job" 2>/dev/null || true
  for host in "${hosts[@]}"; do
    ip netns pids "$tag-$host" 2>/dev/null | xargs --no-run-if-empty kill -KILL
    ip netns del "$tag-$host" 2>/dev/null || true
  done
  ip netns del "$tag-switch"
}
trap clean_up EXIT

ip -n "$tag-switch" link add bridge type bridge
ip -n "$tag-switch" link set bridge up
for host in "${hosts[@]}"; do
  ip netns add "$tag-$host"
  ip link add "port$host" netns "$tag-switch" type veth \
    peer name wire netns "$tag-$host"
  ip -n "$tag-switch" link set "port$host" master bridge up
  ip -n "$tag-$host" address add "10.77.0.$host/24" dev wire
  ip -n "$tag-$host" link set wire up
  ip -n "$tag-$host" link set lo up
  echo "10.77.0.$host slots=1" >>hosts4
done
head -n 2 hosts4 >hosts2

cat >on_host <<END
#!/bin/bash
# HOST COMMAND: runs a command line there.
host=\$1
shift
exec ip netns exec $tag-\$host unshare --uts /bin/bash -c \
  "hostname host\$host; \$*"
END
cat >agent <<END
#!/bin/bash
while [[ \$1 == -* ]]; do shift; done
address=\$1
shift
exec $PWD/on_host \${address##*.} "\$*"
END
chmod +x on_host agent
export OMPI_MCA_plm_rsh_agent=$PWD/agent OMPI_MCA_plm_rsh_no_tree_spawn=1
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=10.77.0.0/24
export OMPI_MCA_oob_tcp_if_include=10.77.0.0/24

mkdir text
for i in 1 2 3 4 5 6; do
  for j in {1..40}; do echo "the $(((i * 7 + j) % 10)) cats sat."; done \
    >text/$i.txt
done
small="--data=$PWD/text --set=model.num_layers=2 --set=model.hidden_size=32 \
  --set=model.num_heads=4 --set=model.seq_len=64 \
  --set=batch.global_batch_size=4 --set=batch.micro_batch_size=1 \
  --set=evaluation.max_batches=2 --set=log.every_steps=1 \
  --set=checkpoint.every_steps=5 --device=cpu"

fail() {
  echo "FAIL: $*"
  cat said
  exit 1
}

# Losses of the steps, a line each.
losses() {
  sed --quiet 's/.*"kind":"train".*"loss":\([^,]*\),.*"step":\([0-9]*\).*/\2 \1/p;
    s/.*"kind":"train","step":\([0-9]*\),.*"loss":\([^,]*\),.*/\1 \2/p' "$1"
}

echo "Four hosts train, one is cut off"
# Slow enough to be cut off in the middle, however quick the machine.
./on_host 1 "exec $program --hostfile=hosts4 --nodes=4 $small --tp=2 \
  --output_dir=$PWD/run --steps=100000 --silence_limit=4" >said 2>&1 &
job=$!
for ((tries = 0; tries < 400; ++tries)); do
  ! grep --quiet "^step 12/" said || break
  sleep 0.1
done
grep --quiet "^step 12/" said || fail "no step 12"
SECONDS=0
ip -n "$tag-switch" link set port3 down
status=0
wait "$job" || status=$?
job=
((status == 3)) || fail "status $status"
((SECONDS < 15)) || fail "it took $SECONDS s"
grep --quiet "host3" said || fail "the host is not named"
grep --quiet -- "--resume" said || fail "no command to go on"
sleep 6 # the limit: the far host's rank ends by itself
left=$(ip netns pids "$tag-3" | xargs --no-run-if-empty ps -o comm= -p)
[[ $left != *train_cpu* ]] || fail "a rank of the lost host is left: $left"
echo "ended after $SECONDS s with status 3"

echo "Two hosts go on with the same data"
ip -n "$tag-switch" link set port3 up
last=$(sed 's/^step_0*//' run/checkpoints/latest)
end=$((last + 5))
./on_host 1 "exec $program --hostfile=hosts2 --nodes=2 --tp=1 --resume \
  --output_dir=$PWD/run --stop_at_step=$end" >said 2>&1 ||
  fail "status $? of the resumed run"
grep --quiet "resumed at step $last " said || fail "not resumed at $last"
"$program" $small --output_dir="$PWD/alone" --steps=100000 \
  --stop_at_step=$end >said 2>&1 || fail "status $? of one rank"
losses run/metrics.jsonl >got
losses alone/metrics.jsonl >wanted
(($(wc -l <got) == end && $(wc -l <wanted) == end)) || fail "steps are missing"
paste -d ' ' got wanted | awk '
  { d = ($2 - $4) / $4; if (d < 0) d = -d; if (d > worst) worst = d }
  $1 != $3 || d > 5e-6 { print "step", $1, $2, "alone", $4; bad = 1 }
  END { print "largest relative difference of a loss:", worst; exit bad }' ||
  fail "other losses"
