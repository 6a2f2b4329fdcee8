# Runs in scripts/lab with the example paced_reads: the kernel's limit by cgroup v2, in the root of the hierarchy and in a
# group that was delegated; what is refused; and that nothing is left of it.
#
#   scripts/lab --disk 64M tests/lab/io_max.sh target/release/examples/paced_reads
set -euo pipefail

root=/sys/fs/cgroup
fail() {
    echo "io_max: $*"
    exit 1
}
# Reads hundreds of MB a second if nobody limits it, 4.4 with the limit.
limited() {
    local said
    said=$("$@" ./paced_reads /dev/vda kernel 4MB/s 4 4) || fail "did not run: $said"
    echo "$said"
    [[ $said =~ measured\ +([0-9.]+)\ MB/s ]] || fail "said no rate"
    awk -v rate="${BASH_REMATCH[1]}" 'BEGIN { exit !(rate < 8) }' || fail "not limited"
}
nothing_left() {
    [[ -z $(find "$root" -name 'vbk-*') ]] || fail "left: $(find "$root" -name 'vbk-*')"
}
in_unit() { (echo "$BASHPID" >"$root/unit/cgroup.procs" && exec "$@"); }

limited env
nothing_left

# As systemd does for a unit with Delegate=io.
echo +io >"$root/cgroup.subtree_control"
mkdir "$root/unit"
limited in_unit
nothing_left
[[ -z $(<"$root/unit/cgroup.subtree_control") ]] || fail "io is still on in the unit"

# Somebody else is in the group: refused, and the reason is told.
sleep 100 &
echo $! >"$root/unit/cgroup.procs"
if said=$(in_unit ./paced_reads /dev/vda kernel 4MB/s 1 1 2>&1); then fail "not refused: $said"; fi
[[ $said == *"other processes"* ]] || fail "another reason: $said"
echo $! >"$root/cgroup.procs"
nothing_left

# A killed one leaves its group, and the next removes it. In a unit that is systemd's work: its group goes with the unit.
./paced_reads /dev/vda kernel 4MB/s 60 1 &
sleep 2
kill -KILL $!
wait $! || true
[[ -n $(find "$root" -name 'vbk-*') ]] || fail "the killed one had no group"
limited env
nothing_left
echo "io_max: good"
