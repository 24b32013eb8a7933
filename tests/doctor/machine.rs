//! Cores, limits, memory and clocks that are not as they should be.

use super::{Scratch, case, check, mpirun, shim};

const TWO_CORES: &str = "[ $(nproc) -ge 2 ]";

/// A clock that is half a minute ahead.
fn wrong_clock(scratch: &Scratch) {
    shim(
        scratch,
        "#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t clock, struct timespec *time) {\n\
         int code = syscall(SYS_clock_gettime, clock, time);\n\
         if (clock == CLOCK_REALTIME) time->tv_sec += 30;\n\
         return code; }\n",
    );
}

/// A control group of so many megabytes, of either version, that the script's process moves into.
const GROUP: &str = "\
for root in /sys/fs/cgroup/memory /sys/fs/cgroup /sys/fs/cgroup/unified; do
    group=$root/trainer-doctor-$$
    mkdir $group 2>/dev/null || continue
    { echo 330000000 >$group/memory.limit_in_bytes || echo 330000000 >$group/memory.max; } 2>/dev/null &&
        (echo 0 >$group/cgroup.procs && exec \"$@\")
    code=$?
    rmdir $group
    exit $code
done
exit 77
";

#[test]
fn machine() {
    let bound = "all 2 ranks are bound to the same 1 of the job's | taskset";
    let one_core = format!("{} taskset -c 0", mpirun(2));
    let table = [
        case("all ranks on one core", 0, "doctor", bound).launcher(&one_core).needs(TWO_CORES),
        case("more threads than cores", 0, "doctor c.yaml --set distributed.threads_per_rank=99",
            "2 ranks of 99 threads | take turns | distributed.threads_per_rank: 1")
            .launcher(&mpirun(2)),
        case("bound to less than its threads", 0, "doctor c.yaml --set distributed.threads_per_rank=2",
            "bound to 1 cores for 2 threads | --bind-to none")
            .launcher("mpirun --bind-to core -n 2")
            .needs(TWO_CORES),
        case("few open files", 0, "doctor", "at most 128 open files | ulimit -n")
            .script("", "ulimit -n 128; exec \"$@\""),
        case("too few open files", 4, "doctor", "at most 40 open files | ulimit -n")
            .script("", "ulimit -n 40; exec \"$@\""),
        case("no large files", 4, "doctor", "a file may have at most 512.0 kB | ulimit -f unlimited")
            .script("", "ulimit -f 1000; exec \"$@\""),
        case("little CPU time", 0, "doctor", "at most 10m00s of CPU time | compute node")
            .script("", "ulimit -t 600; exec \"$@\""),
        case("a small stack", 0, "doctor", "a stack of 524.3 kB | ulimit -s")
            .script("", "ulimit -s 512; exec \"$@\""),
        case("few addresses", 0, "doctor", "addresses are limited to 6.1 GB | ulimit -v unlimited")
            .script("", "ulimit -v 6000000; exec \"$@\""),
        case("few processes", 0, "doctor", "at most 100 processes | ulimit -u")
            .launcher("prlimit --nproc=100:100")
            .needs("prlimit --version"),
        case("a small control group", 4, "doctor", "the job's limit is 330.0 MB | sbatch --mem")
            .script("", GROUP)
            .needs("d=/sys/fs/cgroup/memory; [ -d $d ] || d=/sys/fs/cgroup; mkdir $d/trainer-able && rmdir $d/trainer-able"),
        case("a small /dev/shm", 0, "doctor", "/dev/shm has | MB free | bus error | --shm-size=1g")
            .script("unshare -m", &format!(
                "mount -t tmpfs -o size=8m tmpfs /dev/shm && exec {} \"$@\"", mpirun(2)))
            .needs("unshare -m mount -t tmpfs tmpfs /mnt"),
        case("a clock that is ahead", 0, "doctor", "the clock is 30.0 s ahead of rank 0's | (rank 1 on | chronyc")
            .rank_1("export LD_PRELOAD=$PWD/shim.so")
            .prepare(wrong_clock),
    ];
    check(&table);
}
