//! Launchers, libraries and ranks that do not go together.

use super::{Case, Scratch, case, check, mpirun, shim};

/// Starts the program as four tasks of a step would be, at once, and requires 4 of each.
const FOUR_TASKS: &str = "\
all=
for rank in 0 1 2 3; do
    SLURM_PROCID=$rank PMI_RANK=$rank \"$@\" &
    all=\"$all $!\"
done
for one in $all; do
    wait $one
    [ $? = 4 ] || exit 1
done
exit 4
";

const NONE: &str = include_str!("../../src/config/testdata/srun-none.env");
const PMI2: &str = include_str!("../../src/config/testdata/srun-pmi2.env");
const SBATCH: &str = include_str!("../../src/config/testdata/sbatch.env");

/// An MPI library that says of itself what `SAYS` has.
fn other_mpi(scratch: &Scratch) {
    shim(
        scratch,
        "#include <stdlib.h>\n#include <string.h>\n\
         int MPI_Get_library_version(char *text, int *length) {\n\
         strcpy(text, getenv(\"SAYS\")); *length = strlen(text); return 0; }\n",
    );
}

fn with_mpi(case: Case, says: &str, on: &str) -> Case {
    let script = format!("{on} {{ export SAYS='{says}' LD_PRELOAD=$PWD/shim.so; }}\nexec \"$@\"\n");
    case.script(&mpirun(2), &script).prepare(other_mpi)
}

#[test]
fn launches() {
    let library = "built with Open MPI | but the MPI library it finds here is ";
    let table = [
        case(
            "srun without MPI",
            4,
            "train c.yaml",
            "rank 0 of 4 | srun started 4 tasks | rank 0 of 1 | srun --mpi=pmix",
        )
        .recorded(NONE)
        .script("", &FOUR_TASKS.replace("PMI_RANK=$rank ", "")),
        case("srun --mpi=pmi2 and Open MPI", 4, "doctor", "rank 0 of 4 | PMI | srun --mpi=pmix")
            .recorded(PMI2)
            .script("", FOUR_TASKS)
            .needs("mpirun --version | grep -q 'Open MPI'"),
        case(
            "mpiexec of MPICH and Open MPI",
            4,
            "doctor",
            "rank 0 of 3 | Open MPI does not speak PMI | mpirun -n 3 trainer",
        )
        .launcher("mpiexec.hydra -n 3")
        .needs("mpiexec.hydra --version"),
        case("a PMI rank that cannot be", 4, "doctor", "rank 4 of 4 cannot be | fresh shell")
            .env("PMI_RANK", "4")
            .env("PMI_SIZE", "4"),
        case("half of PMI", 4, "doctor", "PMI_ | without the other | unset").env("PMI_RANK", "0"),
        case("alone in a batch script", 0, "doctor", "one process alone, inside a Slurm job of 2 tasks")
            .recorded(SBATCH),
        with_mpi(case("MPICH's library", 4, "doctor", library), "MPICH Version: 4.0.2", ""),
        with_mpi(case("another major release", 4, "doctor", "Open MPI 5.0.1 | jobs/setup.sh"), "Open MPI v5.0.1", ""),
        with_mpi(
            case("another library on one rank", 4, "doctor", "ranks differ | rank 1 Open MPI 4.1.99 | modules"),
            "Open MPI v4.1.99",
            "[ $OMPI_COMM_WORLD_RANK != 1 ] ||",
        ),
        case("unequal builds", 4, "doctor", "rank 1: another build of trainer | one and the same file")
            .rank_1("cp \"$1\" other; echo >>other; shift; exec ./other \"$@\""),
        case("unequal commands", 4, "doctor", "rank 0 was given `doctor`, rank 1 `doctor --json`")
            .rank_1("set -- \"$@\" --json"),
        case("unequal configurations", 4, "doctor c.yaml", "other than on rank 0: training.lr | same directory")
            .rank_1("mkdir b; sed 's/max_steps/lr: 0.5\\n  max_steps/' c.yaml >b/c.yaml; cp data.csv b; cd b"),
        case("unequal CPUs, to doctor", 4, "doctor", "avx2 kernels, and avx512 on rank 0 | ATEN_CPU_CAPABILITY")
            .rank_1("export ATEN_CPU_CAPABILITY=avx2")
            .needs("grep -q avx512bw /proc/cpuinfo"),
        case(
            "unequal CPUs, to a run",
            4,
            "train c.yaml --set training.use_esm=false",
            "ranks differ | rank 1 on cpu avx2 | ATEN_CPU_CAPABILITY",
        )
        .rank_1("export ATEN_CPU_CAPABILITY=avx2")
        .needs("grep -q avx512bw /proc/cpuinfo"),
        case("a task of an array with gaps", 4, "embed c.yaml", "array with gaps | --part i/n")
            .env("SLURM_ARRAY_TASK_ID", "5")
            .env("SLURM_ARRAY_TASK_MIN", "1")
            .env("SLURM_ARRAY_TASK_STEP", "1")
            .env("SLURM_ARRAY_TASK_COUNT", "2"),
    ];
    check(&table);
}

/// One task of a step, and a shell inside a step, need no MPI and start.
#[test]
fn one_task_of_a_step() {
    let scratch = Scratch::new("one-task");
    for plugin in ["SLURM_STEP_ID", "PMIX_NAMESPACE"] {
        let mut env =
            vec![("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")];
        if plugin == "PMIX_NAMESPACE" {
            env.extend([("PMIX_NAMESPACE", "slurm.pmix.9.0"), ("PMIX_RANK", "0")]);
        }
        let outcome = scratch.launch("", "doctor", &env);
        assert_eq!(outcome.code, 0, "{}{}", outcome.out, outcome.err);
        assert!(outcome.out.contains("one process, which needs no MPI"), "{}", outcome.out);
    }
}
